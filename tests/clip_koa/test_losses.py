"""Symmetry loss and flip consistency against scipy and a plain float64 implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from clip_koa.losses import flip_consistency, jensen_shannon, symmetry_loss


def drawn(rows: int, grades: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(rows, grades, generator=generator) * spread
    flipped = torch.randn(rows, grades, generator=generator) * spread
    return similarity, flipped, torch.randint(grades, (rows,), generator=generator)


def plain_total(similarity: np.ndarray, flipped: np.ndarray, grades: np.ndarray, weight: float) -> float:
    """Eq. 4 in float64, image by image, with probabilities written out."""
    total = 0.0
    for row, mirrored, grade in zip(similarity.astype(float), flipped.astype(float), grades, strict=True):
        p, q = np.exp(row - row.max()), np.exp(mirrored - mirrored.max())
        p, q = p / p.sum(), q / q.sum()
        m = (p + q) / 2
        divergence = sum(0.5 * a * math.log(a / c) + 0.5 * b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True))
        total += -0.5 * math.log(p[grade]) - 0.5 * math.log(q[grade]) + weight * divergence
    return total / len(grades)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("rows", "grades"), [(1, 2), (7, 3), (16, 5)])
def test_total_equals_a_plain_float64_implementation(rows, grades, spread):
    similarity, flipped, y = drawn(rows, grades, spread, seed=rows)
    total = symmetry_loss(similarity, flipped, y) + 10 * flip_consistency(similarity, flipped)
    assert total.item() == pytest.approx(plain_total(similarity.numpy(), flipped.numpy(), y.numpy(), 10), rel=2e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("grades", [2, 5])
def test_divergence_equals_scipy(grades, spread):
    similarity, flipped, _ = drawn(12, grades, spread, seed=3)
    p, q = similarity.double().softmax(1).numpy(), flipped.double().softmax(1).numpy()
    expected = jensenshannon(p, q, axis=1) ** 2
    assert jensen_shannon(similarity.double(), flipped.double()).numpy() == pytest.approx(expected, abs=1e-12)
    assert jensen_shannon(similarity, flipped).numpy() == pytest.approx(expected, abs=3e-7)


def test_bounds():
    same = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * 30
    assert 0.0 <= flip_consistency(same, same).item() <= 1e-7
    assert flip_consistency(same, same + 3.0).item() <= 1e-6
    certain = torch.eye(5) * 1000
    apart = flip_consistency(certain, certain.roll(1, 0)).item()
    assert apart == pytest.approx(math.log(2), rel=1e-6)
    assert apart <= torch.tensor(math.log(2)).item()


def test_symmetric_in_value_and_gradient():
    a, b, _ = drawn(9, 5, 3.0, seed=1)
    a1, b1, a2, b2 = (value.clone().requires_grad_() for value in (a, b, a, b))
    one, other = flip_consistency(a1, b1), flip_consistency(b2, a2)
    (one + 0).backward()
    (other + 0).backward()
    assert one.item() == other.item()
    assert a1.grad is not None
    assert b1.grad is not None
    assert torch.equal(a1.grad, a2.grad)
    assert torch.equal(b1.grad, b2.grad)
    assert a1.grad.abs().sum() > 0


def test_gradient_equals_numerical():
    a, b, y = drawn(3, 4, 2.0, seed=2)
    a, b = a.double().requires_grad_(), b.double().requires_grad_()
    assert torch.autograd.gradcheck(flip_consistency, (a, b))
    assert torch.autograd.gradcheck(lambda s, h: symmetry_loss(s, h, y), (a, b))


@pytest.mark.parametrize("size", [100.0, 1e4, 3e38])
def test_one_hot_is_finite_in_value_and_gradient(size):
    a = (torch.eye(3) * size).requires_grad_()
    b = (torch.eye(3).roll(1, 0) * size).requires_grad_()
    loss = flip_consistency(a, b) + flip_consistency(a, a.detach())
    loss.backward()
    assert math.isfinite(loss.item())
    for value in (a, b):
        assert value.grad is not None
        assert value.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    a, b, y = drawn(8, 5, 4.0, seed=5)
    a, b = a.to(dtype), b.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = symmetry_loss(a, b, y), flip_consistency(a, b)
    expected = symmetry_loss(a.float(), b.float(), y), flip_consistency(a.float(), b.float())
    for loss, other in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == other.item()


def test_symmetry_loss_of_a_certain_and_a_blank_answer():
    y = torch.tensor([0, 2])
    right = torch.nn.functional.one_hot(y, 3).float() * 1000
    blank = torch.zeros(2, 3)
    assert symmetry_loss(right, right, y).item() == 0.0
    assert symmetry_loss(right, blank, y).item() == pytest.approx(math.log(3) / 2)
    assert symmetry_loss(right, blank, y) == symmetry_loss(blank, right, y)
