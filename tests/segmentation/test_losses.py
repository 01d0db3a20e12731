"""Losses of the segmenter against plain ones in float64, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmentation.losses import cross_entropy, dice_loss

SHAPES = [(1, 4, 4), (3, 5, 7), (4, 16, 16)]


def random(shape: tuple[int, int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(shape, generator=generator), (torch.rand(shape, generator=generator) > 0.6).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_against_plain_float64(shape: tuple[int, int, int]) -> None:
    logits, mask = random(shape, 1)
    p, s = 1 / (1 + np.exp(-logits.double().numpy())), mask.double().numpy()
    wanted = 1 - 2 * (p * s).sum() / (p.sum() + s.sum())
    assert dice_loss(logits, mask).item() == pytest.approx(wanted, rel=1e-5)
    plain = -(s * np.log(p) + (1 - s) * np.log(1 - p)).mean()
    assert cross_entropy(logits, mask).item() == pytest.approx(plain, rel=1e-4)


def test_limits() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1
    right = (mask * 2 - 1) * 50
    assert dice_loss(right, mask).item() == pytest.approx(0, abs=1e-5)
    assert cross_entropy(right, mask).item() == pytest.approx(0, abs=1e-5)
    assert dice_loss(-right, mask).item() == pytest.approx(1, abs=1e-5)
    assert dice_loss(right, torch.zeros_like(mask)).item() == 0.0  # an empty mask says nothing of overlap


@pytest.mark.parametrize("loss", [dice_loss, cross_entropy])
def test_half_precision_logits_are_summed_in_float32(loss) -> None:
    logits, mask = random((2, 64, 64), 2)
    assert loss(logits.bfloat16(), mask).dtype == torch.float32
    assert loss(logits.bfloat16(), mask).item() == pytest.approx(loss(logits.bfloat16().float(), mask).item())


def test_gradient_pulls_towards_the_mask() -> None:
    logits, mask = torch.zeros(1, 4, 4, requires_grad=True), torch.zeros(1, 4, 4)
    mask[0, 0] = 1
    (dice_loss(logits, mask) + cross_entropy(logits, mask)).backward()
    assert (logits.grad[0, 0] < 0).all()
    assert (logits.grad[0, 1:] > 0).all()
