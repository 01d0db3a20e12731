"""The grader: where its maps point, what a mirror image changes, what is trained."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from clip_koa.build import build_clip_grader
from clip_koa.config import ClipConfig
from clip_koa.head import ImageFeatures, SimilarityScale
from clip_koa.losses import flip_consistency, symmetry_loss
from clip_koa.model import ClipGrader
from clip_koa.towers import FixedTexts
from knee.attention import attention_map
from knee.grades import load_grade_set
from knee.nn.flips import with_flipped
from knee.task import Grader


class ColumnTower(torch.nn.Module):
    """Embeds the mean of each half-mirrored pair of columns, so that a mirror image looks the same."""

    embed_dim = 6
    pooled_is_mean = True
    pixel_mean = (0.0,)
    pixel_std = (1.0,)

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(6, 6, bias=False)

    def forward(self, pixels: torch.Tensor) -> ImageFeatures:
        grey = pixels[:, 0]
        pairs = (grey + grey.flip(2))[:, :, :6].mean(1)
        embedded = self.mix(pairs)
        return ImageFeatures(embedded, embedded[:, :, None, None].expand(-1, -1, 4, 4))


class MatchTower(torch.nn.Module):
    """Each patch of 8 px shows one text: the patch's brightness is the number of it."""

    embed_dim = 5
    pixel_mean = (0.0,)
    pixel_std = (1.0,)

    def __init__(self, *, pooled_is_mean: bool) -> None:
        super().__init__()
        self.pooled_is_mean = pooled_is_mean

    def forward(self, pixels: torch.Tensor) -> ImageFeatures:
        shown = torch.nn.functional.avg_pool2d(pixels[:, :1], 8).mul(10).round().long()[:, 0]
        patches = torch.nn.functional.one_hot(shown, 5).float().permute(0, 3, 1, 2)
        return ImageFeatures(patches.mean((2, 3)), patches)


@pytest.mark.parametrize("pooled_is_mean", [True, False])
def test_the_attention_map_points_at_the_patch_that_matches_the_text(pooled_is_mean):
    grader = ClipGrader(MatchTower(pooled_is_mean=pooled_is_mean), FixedTexts(torch.eye(5)), SimilarityScale())
    images = torch.zeros(2, 1, 32, 32)
    images[0, :, 8:16, 24:32] = 0.3  # grade 3 at row 1, column 3
    images[1, :, 24:32, 0:8] = 0.2  # grade 2 at row 3, column 0
    maps = grader(images).class_maps
    x = attention_map(maps, torch.tensor([3, 2]), (4, 4))
    expected = torch.zeros(2, 4, 4)
    expected[0, 1, 3] = expected[1, 3, 0] = 1
    assert torch.equal(x, expected)


def test_it_is_a_grader_and_takes_one_channel(patch_grader):
    grader = patch_grader()
    assert isinstance(grader, Grader)
    grading = grader(torch.rand(3, 1, 32, 32))
    assert grading.logits.shape == (3, 5)
    assert grading.class_maps.shape == (3, 5, 4, 4)


def test_normalisation_is_the_given_one_and_travels_with_the_weights(patch_grader):
    grader = patch_grader(mean=[0.3], std=[0.2])
    images = torch.rand(1, 1, 32, 32)
    seen = grader.image_tower(((images - 0.3) / 0.2).expand(-1, 3, -1, -1)).pooled
    assert torch.allclose(grader.embed(images).pooled, seen, atol=1e-6)
    assert patch_grader().mean.flatten().tolist() == [0.5] * 3  # the tower's own
    other = patch_grader()
    other.load_state_dict(grader.state_dict())
    assert other.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    with pytest.raises(ValueError, match="one value or three"):
        patch_grader(mean=[0.1, 0.2])


def test_no_text_pass_after_the_first_step_with_a_frozen_text_tower(patch_grader):
    grader = patch_grader(trainable_text=False)
    optimizer = torch.optim.SGD([p for p in grader.parameters() if p.requires_grad], lr=0.1)
    y = torch.tensor([0, 3])
    for _ in range(4):
        one, other = with_flipped(grader, torch.rand(2, 1, 32, 32))
        optimizer.zero_grad()
        symmetry_loss(one.logits, other.logits, y).backward()
        optimizer.step()
        assert grader.text_tower.encoder.passes == 1
    teacher = copy.deepcopy(grader)
    teacher(torch.rand(1, 1, 32, 32))
    assert teacher.text_tower.encoder.passes == 1


@pytest.mark.parametrize(("detach", "reached"), [(True, False), (False, True)])
def test_texts_and_scale_are_detached_in_the_maps(patch_grader, detach, reached):
    grader = patch_grader(detach_texts=detach)
    grader(torch.rand(2, 1, 32, 32)).class_maps.square().sum().backward()
    assert (grader.text_tower.encoder.table.weight.grad is not None) is reached
    assert (grader.scale.log_scale.grad is not None) is reached
    assert grader.image_tower.conv.weight.grad.abs().sum() > 0


def test_flipped_equals_two_passes_and_maps_are_mirrored_back(patch_grader):
    grader = patch_grader(trainable_text=False)
    images = torch.rand(3, 1, 32, 32)
    one, other = with_flipped(grader, images)
    alone, mirrored = grader(images), grader(images.flip(3))
    assert torch.allclose(one.logits, alone.logits, atol=1e-5)
    assert torch.allclose(other.logits, mirrored.logits, atol=1e-5)
    assert torch.allclose(other.class_maps.flip(3), mirrored.class_maps, atol=1e-4)


def test_a_flip_invariant_tower_costs_nothing():
    torch.manual_seed(0)
    grader = ClipGrader(ColumnTower(), FixedTexts(torch.randn(5, 6)), SimilarityScale("fixed", start=100.0))
    one, other = with_flipped(grader, torch.rand(8, 1, 12, 12))
    assert flip_consistency(one.logits, other.logits).item() <= 1e-6
    assert (one.logits.argmax(1) == other.logits.argmax(1)).all()
    assert one.logits.std() > 1  # its answers do differ between grades


def test_a_tower_that_sees_sides_does_cost(patch_grader):
    one, other = with_flipped(patch_grader(trainable_text=False), torch.rand(8, 1, 32, 32))
    assert 1e-5 < flip_consistency(one.logits, other.logits).item() <= math.log(2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_single_and_finite_at_the_largest_scale(patch_grader, dtype):
    grader = patch_grader(trainable_text=False)
    with torch.no_grad():
        grader.scale.log_scale.fill_(40.0)
    images = torch.rand(4, 1, 32, 32)
    expected = grader(images)
    with torch.autocast("cpu", dtype=dtype):
        grading = grader(images)
        loss = symmetry_loss(grading.logits, grading.logits, torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert grading.logits.dtype == torch.float32
    assert grading.logits.abs().max() <= 100.01
    # Cosines of a tower run in half precision: 8 bits of 100 for bfloat16, 11 for float16.
    assert (grading.logits - expected.logits).abs().max() < (0.3 if dtype == torch.float16 else 2.0)
    assert all(p.grad.isfinite().all() for p in grader.parameters() if p.grad is not None)


def test_training_on_one_batch_learns_it_from_text(clip_folder):
    torch.manual_seed(0)
    config = ClipConfig(image=f"local-dir:{clip_folder}", scale_start=14.0)
    grader = build_clip_grader(config, load_grade_set("kl"), image_size=32, mean=[0.5], std=[0.25])
    optimizer = torch.optim.AdamW(grader.parameters(), lr=3e-3)
    images, y = torch.rand(10, 1, 32, 32), torch.arange(10) % 5
    first = None
    for _ in range(25):
        one, other = with_flipped(grader, images)
        loss = symmetry_loss(one.logits, other.logits, y) + 10 * flip_consistency(one.logits, other.logits)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert (with_flipped(grader, images)[1].logits.argmax(1) == y).float().mean() >= 0.8
