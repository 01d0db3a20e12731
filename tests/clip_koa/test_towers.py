"""Towers: freezing, counting text passes, agreement with open_clip, other image sizes."""

from __future__ import annotations

import copy

import open_clip
import pytest
import timm
import torch
from torch.nn.functional import normalize

from clip_koa.open_clip_towers import clip_towers
from clip_koa.timm_towers import timm_tower
from clip_koa.towers import FixedTexts, GradeTexts


def test_frozen_text_is_embedded_once(counting_texts):
    texts = counting_texts(trainable=False)
    texts.train()
    first = texts()
    for _ in range(5):
        assert torch.equal(texts(), first)
    assert texts.encoder.passes == 1
    assert not first.requires_grad
    assert not texts.encoder.training  # else dropout would have been kept in the embeddings
    assert first.norm(dim=1) == pytest.approx(torch.ones(5).numpy(), abs=1e-6)


def test_trainable_text_is_embedded_every_time_with_a_gradient(counting_texts):
    texts = counting_texts(trainable=True)
    texts().sum().backward()
    texts()
    assert texts.encoder.passes == 2
    assert texts.encoder.table.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("through", ["grader", "encoder"])
def test_loading_weights_embeds_anew(counting_texts, through):
    texts, other = counting_texts(trainable=False), counting_texts(trainable=False)
    with torch.no_grad():
        other.encoder.table.weight.normal_(generator=torch.Generator().manual_seed(9))
    before = texts().clone()
    if through == "grader":
        texts.load_state_dict(other.state_dict())
    else:
        texts.encoder.load_state_dict(other.encoder.state_dict())
    assert not torch.equal(texts(), before)
    assert torch.equal(texts(), other())
    assert texts.encoder.passes == 2


def test_a_copy_keeps_its_own_embeddings(counting_texts):
    texts = counting_texts(trainable=False)
    texts()
    twin = copy.deepcopy(texts)
    twin.load_state_dict(counting_texts(trainable=False).state_dict())
    assert texts.is_current
    assert not twin.is_current
    assert list(dict(twin.named_buffers())) == list(dict(texts.named_buffers()))


def test_freezing_keeps_the_present_embeddings(counting_texts):
    texts = counting_texts(trainable=True).eval()
    expected = texts().detach()
    texts.freeze()
    texts.train()
    assert torch.equal(texts(), expected)
    texts()
    assert texts.encoder.passes == 2
    assert not any(parameter.requires_grad for parameter in texts.parameters())


def test_first_pass_in_inference_mode_can_be_trained_with(counting_texts):
    texts = counting_texts(trainable=False)
    with torch.inference_mode():
        texts()
    weight = torch.ones(5, 8, requires_grad=True)
    (texts() * weight).sum().backward()
    assert torch.equal(weight.grad, texts())


def test_phrases_of_a_grade_are_averaged_as_unit_vectors():
    encoder = torch.nn.Embedding(3, 2)
    encoder.weight.data = torch.tensor([[10.0, 0.0], [0.0, 0.1], [3.0, 4.0]])
    squeeze = torch.nn.Sequential(encoder, torch.nn.Flatten())
    texts = GradeTexts(squeeze, torch.tensor([[0], [1], [2]]), [0, 0, 1], embed_dim=2)
    assert torch.allclose(texts(), torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8]]))


def test_fixed_texts_keep_or_train():
    values = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert torch.allclose(FixedTexts(values)(), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert not FixedTexts(values).embeddings.requires_grad
    assert FixedTexts(values, trainable=True).embeddings.requires_grad


def test_clip_tower_agrees_with_open_clip(clip_folder):
    towers = clip_towers(f"local-dir:{clip_folder}", image_size=64)
    reference = open_clip.create_model(f"local-dir:{clip_folder}")
    towers.image.eval()
    reference.eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = towers.text.tokenizer(["a normal knee", "severe osteoarthritis"])
    with torch.no_grad():
        features = towers.image(pixels)
        maps = reference.visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True)
        patches = torch.einsum("bchw,cd->bdhw", maps["image_intermediates"][0], reference.visual.proj)
        assert torch.allclose(features.pooled, reference.encode_image(pixels), atol=1e-5)
        assert torch.allclose(features.patches, patches, atol=1e-5)
        assert torch.allclose(towers.text.encoder(tokens), reference.encode_text(tokens), atol=1e-5)
    assert towers.scale == pytest.approx(50)
    assert towers.image.pixel_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("size", [32, 112, 128])
def test_clip_position_embeddings_are_interpolated(clip_folder, size):
    towers = clip_towers(f"local-dir:{clip_folder}", image_size=size)
    features = towers.image(torch.zeros(1, 3, size, size))
    assert features.patches.shape == (1, 24, size // 16, size // 16)
    at_64 = clip_towers(f"local-dir:{clip_folder}", image_size=64)
    own, other = (tower.image.visual.positional_embedding.detach() for tower in (towers, at_64))
    assert torch.equal(own[0], other[0])  # the class token's is not interpolated
    assert own[1:].mean() == pytest.approx(other[1:].mean().item(), abs=0.02)


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


def test_a_frozen_clip_tower_gets_no_gradient_and_stays_in_eval(clip_folder):
    tower = clip_towers(f"local-dir:{clip_folder}", image_size=64, trainable=False).image
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower(torch.zeros(1, 3, 64, 64)).patches.requires_grad


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_frozen_timm_tower_trains_its_projection_alone(name):
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


@pytest.mark.slow
def test_the_paper_tower_has_a_14_by_14_grid():
    towers = clip_towers("ViT-B-16-quickgelu", image_size=224, pretrained=False)
    with torch.no_grad():
        features = towers.image(torch.zeros(1, 3, 224, 224))
    assert features.pooled.shape == (1, 512)
    assert features.patches.shape == (1, 512, 14, 14)
    assert sum(parameter.numel() for parameter in towers.image.parameters()) == 86_192_640


def test_weights_bring_their_phrases_with_them(counting_texts):
    trained = counting_texts(trainable=True).eval()
    blank = GradeTexts(copy.deepcopy(trained.encoder), torch.zeros(5, 77).long(), range(5), embed_dim=8).eval()
    assert not torch.allclose(blank(), trained())
    twin = copy.deepcopy(blank)
    for texts in (blank, twin):
        texts.load_state_dict(trained.state_dict())
        assert torch.equal(texts(), trained())
    assert torch.equal(blank.tokens, trained.tokens)


@pytest.mark.parametrize("shape", [(5, 70), (4, 77)])
def test_phrases_of_another_context_or_other_grades_are_refused(counting_texts, shape):
    texts = counting_texts(trainable=True)
    other = GradeTexts(texts.encoder, torch.zeros(shape).long(), range(shape[0]), embed_dim=8)
    with pytest.raises(RuntimeError, match=r"tokens|membership"):
        other.load_state_dict(texts.state_dict())


def test_embeddings_survive_what_restores_buffers(counting_texts):
    """A trial step or a skipped one puts all buffers back; the texts must not become those from before."""
    texts = counting_texts(trainable=False)
    before = [buffer.clone() for buffer in texts.buffers()]
    expected = texts().clone()
    for buffer, value in zip(texts.buffers(), before, strict=True):
        buffer.copy_(value)
    assert torch.equal(texts(), expected)
    assert texts.encoder.passes == 1


def test_frozen_text_is_embedded_in_full_precision(counting_texts):
    texts, other = counting_texts(trainable=False), counting_texts(trainable=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = texts()
    assert torch.equal(first, other())
