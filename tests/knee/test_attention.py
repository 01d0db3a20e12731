"""Where a grader looked: scaling, soft threshold, degenerate maps, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from knee.attention import (
    attention_map,
    attention_mask,
    empty_attention,
    gradient_share,
    rectified_map,
    soft_threshold,
)


def class_maps(shape: tuple[int, ...] = (3, 4, 5, 6), seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(5, 6), (10, 12), (37, 23)])
def test_map_is_scaled_to_the_unit_interval_per_image(size: tuple[int, int]) -> None:
    x = attention_map(class_maps(), torch.tensor([0, 3, 1]), size)
    assert x.shape == (3, *size)
    assert torch.equal(x.amin((1, 2)), torch.zeros(3))
    assert torch.equal(x.amax((1, 2)), torch.ones(3))


def test_map_against_a_plain_float64_implementation() -> None:
    maps, classes = class_maps(), [2, 0, 3]
    found = attention_mask(maps, torch.tensor(classes), (5, 6), sharpness=7.0, threshold=0.3).numpy()
    for image, grade in enumerate(classes):
        chosen = np.maximum(maps[image, grade].double().numpy(), 0)
        x = (chosen - chosen.min()) / (chosen.max() - chosen.min())
        assert found[image] == pytest.approx(1 / (1 + np.exp(-7.0 * (x - 0.3))), abs=1e-5)


@pytest.mark.parametrize("size", [(5, 6), (10, 12), (37, 23), (96, 96), (3, 2)])
def test_up_sampling_is_torchs_bilinear_one(size: tuple[int, int]) -> None:
    maps = class_maps().requires_grad_()
    ours = rectified_map(maps, torch.tensor([0, 1, 2]), size)
    chosen = maps[torch.arange(3), torch.arange(3)].relu()
    theirs = torch.nn.functional.interpolate(chosen[:, None], size=size, mode="bilinear")[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours.square().sum(), maps)
    (wanted,) = torch.autograd.grad(theirs.square().sum(), maps)
    assert torch.allclose(gradient, wanted, atol=1e-4)


def test_scale_of_the_map_does_not_matter_but_its_class_does() -> None:
    maps = class_maps()
    one, other = torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])
    assert torch.allclose(attention_map(5 * maps, one, (9, 9)), attention_map(maps, one, (9, 9)), atol=1e-6)
    assert not torch.allclose(attention_map(maps, other, (9, 9)), attention_map(maps, one, (9, 9)))


@pytest.mark.parametrize("value", [0.0, -3.0, 2.0])
def test_constant_map_shows_nothing_and_stays_finite(value: float) -> None:
    maps = torch.full((2, 3, 4, 4), value, requires_grad=True)
    f = attention_mask(maps, torch.tensor([0, 2]), (8, 8))
    assert torch.equal(f, torch.zeros(2, 8, 8))
    assert empty_attention(f).tolist() == [True, True]
    f.sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_map_that_shows_something_is_not_empty() -> None:
    maps = torch.zeros(2, 1, 4, 4)
    maps[1, 0, 1, 1] = 1e-3
    f = attention_mask(maps, torch.tensor([0, 0]), (4, 4))
    assert empty_attention(f).tolist() == [True, False]
    assert f[1].max() == pytest.approx(1.0)


def test_half_precision_input_is_scaled_in_float32() -> None:
    maps = class_maps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = attention_mask(maps.bfloat16(), torch.tensor([0, 1, 2]), (20, 24))
    assert f.dtype == torch.float32
    assert torch.equal(f, attention_mask(maps.bfloat16().float(), torch.tensor([0, 1, 2]), (20, 24)))


def test_gradient_reaches_the_chosen_class_alone() -> None:
    maps = class_maps().requires_grad_()
    attention_mask(maps, torch.tensor([1, 1, 1]), (5, 6), sharpness=4.0).sum().backward()
    assert maps.grad is not None
    assert maps.grad[:, 1].abs().sum() > 0
    assert maps.grad[:, [0, 2, 3]].abs().sum() == 0


def test_a_first_look_in_inference_mode_leaves_training_as_it_was() -> None:
    size = (17, 19)  # of no other test: what is computed once for a size must serve both modes
    with torch.inference_mode():
        attention_mask(class_maps(), torch.tensor([0, 1, 2]), size)
    maps = class_maps().requires_grad_()
    attention_mask(maps, torch.tensor([0, 1, 2]), size, sharpness=4.0).sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0


def test_gradient_share_counts_pixels_near_the_threshold() -> None:
    x = torch.tensor([[[0.0, 0.39, 0.41, 1.0]]])
    assert gradient_share(soft_threshold(x)) == pytest.approx(0.5)
    slope = float(soft_threshold(torch.tensor(0.45)))
    assert slope * (1 - slope) == pytest.approx(0.0066, abs=1e-4)


def test_unscaled_maximum_survives_in_the_rectified_map() -> None:
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 1, 1, 1] = 7.5
    assert rectified_map(maps, torch.tensor([1]), (3, 3)).max() == 7.5
    assert rectified_map(maps, torch.tensor([0]), (3, 3)).max() == 0.0
    assert not math.isnan(float(attention_map(maps, torch.tensor([0]), (3, 3)).sum()))
