"""The soft CLIP loss against a second implementation in float64, and the properties of its targets."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from image_text.losses import (
    Earlier,
    Targets,
    diagonal_mass,
    effective_rank,
    hard_targets,
    label_targets,
    mixed_targets,
    same_targets,
    self_targets,
    soft_clip,
    teacher_targets,
    unit,
)


def embeddings(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, dim, generator=generator, dtype=dtype) for _ in range(2))
    return F.normalize(a, dim=1), F.normalize(b, dim=1)


def every_target(a: Tensor, b: Tensor, scale: float) -> dict[str, Targets]:
    count = len(a)
    grades = torch.arange(count) % 3 - 1
    return {
        "hard": hard_targets(count),
        "self": self_targets(a, b, scale),
        "labels": label_targets(grades),
        "same": same_targets(torch.arange(count) // 2, torch.arange(count) % 4),
        "teacher": teacher_targets(b, a, scale),
        "mixed": mixed_targets(teacher_targets(b, a, scale), 0.3),
    }


def plain_loss(a: np.ndarray, b: np.ndarray, scale: float, q: np.ndarray, r: np.ndarray) -> float:
    """The formula, pair by pair, in Python's floats."""
    count = len(a)
    logits = [[scale * sum(x * y for x, y in zip(a[i], b[j], strict=True)) for j in range(count)] for i in range(count)]
    total = 0.0
    for i in range(count):
        norm = math.log(sum(math.exp(logits[i][j]) for j in range(count)))
        total -= sum(q[i][j] * (logits[i][j] - norm) for j in range(count)) / count
    for j in range(count):
        norm = math.log(sum(math.exp(logits[i][j]) for i in range(count)))
        total -= sum(r[j][i] * (logits[i][j] - norm) for i in range(count)) / count
    return total / 2


@pytest.mark.parametrize("kind", ["hard", "self", "labels", "same", "teacher", "mixed"])
@pytest.mark.parametrize(("count", "dim", "scale"), [(2, 3, 1.0), (5, 4, 14.3), (7, 16, 100.0)])
def test_loss_is_the_formula(kind: str, count: int, dim: int, scale: float) -> None:
    a, b = embeddings(count, dim, seed=count)
    targets = every_target(a, b, scale)[kind]
    q, r = (target.double().numpy() for target in targets)
    expected = plain_loss(a.numpy(), b.numpy(), scale, q, r)
    assert float(soft_clip(a, b, scale, targets).loss) == pytest.approx(expected, rel=1e-12)
    assert float(soft_clip(a.float(), b.float(), scale, targets).loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["hard", "self", "labels", "same", "teacher", "mixed"])
def test_rows_of_both_directions_sum_to_1_and_the_loss_is_at_least_their_entropy(kind: str) -> None:
    for seed in range(5):
        a, b = embeddings(9, 8, seed)
        targets = every_target(a, b, 20.0)[kind]
        for target in targets:
            torch.testing.assert_close(target.sum(1).double(), torch.ones(9, dtype=torch.float64), atol=1e-6, rtol=0)
            assert (target >= 0).all()
        found = soft_clip(a, b, 20.0, targets)
        assert float(found.loss) >= float(found.entropy) - 1e-6


def test_hard_targets_are_clip() -> None:
    a, b = embeddings(6, 5, seed=1)
    logits, own = 30.0 * a @ b.T, torch.arange(6)
    clip = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    found = soft_clip(a, b, 30.0, hard_targets(6))
    assert float(found.loss) == pytest.approx(float(clip), rel=1e-12)
    assert float(found.entropy) == 0
    same = soft_clip(a, b, 30.0, same_targets(torch.arange(6), torch.full((6,), -1)))
    assert float(same.loss) == pytest.approx(float(clip), rel=1e-12)


@pytest.mark.parametrize("kind", ["hard", "self", "labels", "same", "teacher", "mixed"])
def test_order_of_the_pairs_does_not_matter(kind: str) -> None:
    a, b = embeddings(8, 6, seed=2)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    targets = every_target(a, b, 10.0)[kind]
    moved = Targets(*(target[order][:, order] for target in targets))
    one, two = soft_clip(a, b, 10.0, targets), soft_clip(a[order], b[order], 10.0, moved)
    assert float(one.loss) == pytest.approx(float(two.loss), rel=1e-12)
    if kind in ("self", "teacher"):
        torch.testing.assert_close(every_target(a[order], b[order], 10.0)[kind], moved)


@pytest.mark.parametrize("kind", ["hard", "labels", "same", "teacher"])
def test_gradient(kind: str) -> None:
    a, b = embeddings(4, 3, seed=3)
    targets = every_target(a, b, 5.0)[kind]
    a, b = a.requires_grad_(), b.requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return soft_clip(x, y, s, targets).loss

    assert torch.autograd.gradcheck(loss, (a, b, scale))


@pytest.mark.parametrize("make", [self_targets, teacher_targets])
def test_no_gradient_through_the_targets(make: Callable[..., Targets]) -> None:
    a, b = (part.requires_grad_() for part in embeddings(4, 3, seed=4))
    assert not any(target.requires_grad for target in make(a, b, torch.tensor(3.0, requires_grad=True)))


def test_equal_reports_and_images_of_one_study_are_no_negatives() -> None:
    targets = same_targets(torch.tensor([5, 5, 6, -1, -1]), torch.tensor([0, 1, 2, 2, 3]))
    expected = torch.tensor(
        [[0.5, 0.5, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]]
    )
    assert torch.equal(targets.images, expected)
    assert torch.equal(targets.texts, expected)
    # Two patients with one report, embedded alike: nothing is left to separate, while hard targets still push.
    one = torch.ones(2, 4, dtype=torch.float64) / 2
    same = soft_clip(one, one, 10.0, same_targets(torch.zeros(2).long(), torch.tensor([0, 1])))
    assert float(same.loss - same.entropy) == pytest.approx(0, abs=1e-12)
    hard = soft_clip(one, one, 10.0, hard_targets(2))
    assert float(hard.loss - hard.entropy) == pytest.approx(math.log(2))


def test_labels_share_mass_among_pairs_of_a_grade_and_leave_ungraded_pairs_alone() -> None:
    targets = label_targets(torch.tensor([2, 2, 0, -1]), temperature=0.1)
    near = math.exp(10) / (2 * math.exp(10) + 1)
    assert float(targets.images[0, 1]) == pytest.approx(near, rel=1e-5)
    assert float(targets.images[0, 0]) == pytest.approx(near, rel=1e-5)
    assert targets.images[3].tolist() == [0, 0, 0, 1]
    assert targets.images[:3, 3].tolist() == [0, 0, 0]


def test_labels_at_temperature_1_are_too_flat() -> None:
    grades = torch.arange(64) % 5
    assert float(diagonal_mass(label_targets(grades, temperature=1.0))) < 0.05
    assert float(diagonal_mass(hard_targets(64))) == 1


def test_self_targets_have_no_gradient_once_both_towers_agree() -> None:
    a, _ = embeddings(6, 4, seed=6)
    a = a.requires_grad_()
    soft_clip(a, a, 20.0, self_targets(a, a, 20.0)).loss.backward()
    assert a.grad is not None
    assert float(a.grad.abs().max()) < 1e-12


@pytest.mark.parametrize(("rank", "expected"), [(1, 1.0), (3, 3.0)])
def test_effective_rank_counts_equal_directions(rank: int, expected: float) -> None:
    assert float(effective_rank(torch.eye(4)[:rank].repeat(5, 1))) == pytest.approx(expected, rel=1e-5)


def test_unit_length() -> None:
    assert unit(torch.tensor([[3.0, 4.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_earlier_pairs_are_columns_without_rows() -> None:
    """The rows of a whole batch, of which the later pairs are given as earlier ones, against the whole."""
    a, b = embeddings(7, 5, seed=6)
    groups, studies = torch.tensor([0, 1, 1, -1, 0, 5, -1]), torch.tensor([0, 1, 2, 3, 4, 3, 6])
    earlier = Earlier(a[4:], b[4:], groups[4:], studies[4:])
    whole, part = same_targets(groups, studies), same_targets(groups[:4], studies[:4], earlier)
    for one, two in zip(whole, part, strict=True):
        torch.testing.assert_close(one[:4], two)
    part = mixed_targets(part, 0.25)
    rows, columns = 20.0 * a @ b.T, 20.0 * b @ a.T
    expected = -(part.images * rows[:4].log_softmax(1) + part.texts * columns[:4].log_softmax(1)).sum(1).mean() / 2
    found = soft_clip(a[:4], b[:4], 20.0, part, earlier)
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(found.loss) >= float(found.entropy)
