"""timm backbones as image towers: grids, strides, weights."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch.nn.functional import normalize

import knee.nn.weights
from clip_koa.timm_towers import timm_tower

from .conftest import refusal


def test_the_hub_is_left_as_it_was(offline):
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    refusal(timm_tower, "resnet18", embed_dim=4, image_size=64, pretrained=True)
    assert before == constants.HF_HUB_OFFLINE


def test_random_weights_never_ask_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(knee.nn.weights, "can_reach", asked.append)
    tower = timm_tower("test_resnet", embed_dim=4, image_size=64, stride=0)
    assert sum(weight.numel() for weight in tower.parameters()) > 0
    assert asked == []


def test_strides_and_stages_a_backbone_cannot_take():
    message = refusal(timm_tower, "vgg11", embed_dim=4, image_size=64, stride=16)
    assert "cannot change its stride in timm; set clip.stride to 0" in message
    message = refusal(timm_tower, "resnet18", embed_dim=4, image_size=96, stride=16, stage=-4)
    assert "clip.stride: resnet18 gives a feature map of 24 × 24 for 96 px, a stride of about 4, not 16" in message
    assert "-1 is the last" in refusal(timm_tower, "resnet18", embed_dim=4, image_size=96, stride=0, stage=9)


def test_a_side_that_is_not_a_multiple_of_the_stride_is_rounded_up():
    tower = timm_tower("resnet18", embed_dim=4, image_size=112, stride=32)
    assert tower(torch.zeros(2, 3, 112, 112)).patches.shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("name", "size", "options", "grid"),
    [
        ("test_vit", 96, {"stride": 0}, 6),
        ("test_vit", 96, {"stride": 8}, 12),
        ("test_resnet", 96, {"stride": 0}, 3),
        ("resnet18", 96, {"stride": 8, "stage": -2}, 12),
        ("resnet18", 112, {"stride": 16}, 7),
    ],
)
def test_timm_towers_map_the_image(name, size, options, grid):
    tower = timm_tower(name, embed_dim=12, image_size=size, **options)
    features = tower(torch.rand(2, 3, size, size))
    assert features.pooled.shape == (2, 12)
    assert features.patches.shape == (2, 12, grid, grid)
    if tower.pooled_is_mean:
        assert torch.allclose(features.patches.mean((2, 3)), features.pooled, atol=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_frozen_timm_tower_trains_only_its_projection(name):
    tower = timm_tower(name, embed_dim=4, image_size=64, stride=0, trainable=False)
    tower.train()
    before = copy.deepcopy(tower.state_dict())
    features = tower(torch.rand(4, 3, 64, 64))
    (normalize(features.pooled, dim=1)[:, 0].sum() + features.patches.sum()).backward()
    assert [key for key, value in tower.named_parameters() if value.grad is not None] == ["projection.weight"]
    # Batch statistics did not move.
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())


def test_timm_weights_from_a_file(tmp_path):
    torch.manual_seed(3)
    source = timm.create_model("test_vit", img_size=160)
    path = tmp_path / "vit.pt"
    torch.save(source.state_dict(), path)
    tower = timm_tower("test_vit", embed_dim=4, image_size=96, stride=0, pretrained=str(path))
    own = tower.body.state_dict()
    assert torch.equal(own["blocks.0.attn.qkv.weight"], source.state_dict()["blocks.0.attn.qkv.weight"])
    assert own["pos_embed"].shape[1] == 6 * 6 + 1
