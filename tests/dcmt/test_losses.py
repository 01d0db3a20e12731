"""Losses against a second, plain float64 implementation, and against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcmt.losses import (
    Mixture,
    attention_consistency,
    attention_loss,
    draw_mixture,
    mixed,
    ordinal_loss,
    probability_consistency,
    soft_cross_entropy,
    soft_labels,
)

SHAPES = [(1, 1, 1), (2, 3, 4), (5, 16, 16), (3, 7, 31)]


def soft(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def binary(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return (soft(shape, seed) > 0.6).float()


def plain_attention_loss(f: NDArray[np.float64], s: NDArray[np.float64], a: float, r: float) -> float:
    values = []
    for image in range(len(f)):
        squared = overlap = total_f = total_s = 0.0
        for row in range(f.shape[1]):
            for column in range(f.shape[2]):
                p, q = f[image, row, column], s[image, row, column]
                squared += (p - q) ** 2
                overlap += p * q
                total_f += p
                total_s += q
        values.append(a * squared / max(total_f + total_s, 1e-6) + r * (1 - overlap / max(total_f, 1e-6)))
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("a", "r"), [(0.5, 0.001), (1.0, 0.0), (0.0, 1.0)])
def test_attention_loss_against_the_plain_one(shape: tuple[int, int, int], a: float, r: float) -> None:
    f, s = soft(shape, 1), binary(shape, 2)
    wanted = plain_attention_loss(f.double().numpy(), s.double().numpy(), a, r)
    assert float(attention_loss(f, s, mse_weight=a, inside_weight=r)) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_consistency_against_the_plain_one(shape: tuple[int, int, int]) -> None:
    f, g = soft(shape, 3), soft(shape, 4)
    wanted = plain_attention_loss(f.double().numpy(), g.double().numpy(), 1.0, 0.0)
    assert float(attention_consistency(f, g)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("batch", "grades"), [(1, 2), (4, 3), (30, 5)])
def test_probability_consistency_against_the_plain_one(batch: int, grades: int) -> None:
    a, b = 4 * soft((batch, grades), 5), 4 * soft((batch, grades), 6)

    def probabilities(logits: torch.Tensor) -> NDArray[np.float64]:
        powers = np.exp(logits.double().numpy())
        shares: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
        return shares

    wanted = np.mean((probabilities(a) - probabilities(b)) ** 2)
    assert float(probability_consistency(a, b)) == pytest.approx(wanted, rel=1e-5)


def test_temperature_sharpens_the_teacher_alone() -> None:
    """Teacher 0.8, 0.2 at T = 1/2: 0.8² / (0.8² + 0.2²) = 16/17. A student that says 0.8 is 12/85 away, each grade."""
    teacher = torch.tensor([[0.8, 0.2]]).log()
    assert float(probability_consistency(teacher, teacher)) == 0.0
    found = probability_consistency(teacher, teacher, temperature=0.5)
    assert float(found) == pytest.approx((16 / 17 - 0.8) ** 2, rel=1e-5)
    assert float(probability_consistency(teacher, teacher, temperature=2)) == pytest.approx(
        (2 / 3 - 0.8) ** 2, rel=1e-5
    )


def test_opposite_certain_grades_cost_two_thirds_at_three_grades() -> None:
    a, b = torch.tensor([[100.0, 0, 0]]), torch.tensor([[0, 0, 100.0]])
    assert float(probability_consistency(a, b)) == pytest.approx(2 / 3)
    assert float(probability_consistency(a, a)) == 0.0


def test_adding_a_constant_to_the_logits_changes_nothing() -> None:
    a, b = soft((4, 5), 7), soft((4, 5), 8)
    assert torch.allclose(probability_consistency(a + 3, b - 2), probability_consistency(a, b), atol=1e-7)


def test_attention_on_the_mask_costs_nothing_and_beside_it_everything() -> None:
    s = torch.zeros(1, 4, 4)
    s[0, :2] = 1
    assert float(attention_loss(s, s)) == pytest.approx(0.0)
    assert float(attention_loss(1 - s, s)) == pytest.approx(0.5 + 0.001)
    half = torch.zeros(1, 4, 4)
    half[0, :1] = 1  # inside, half of it: Σ(f − S)² = 4, Σf + ΣS = 12
    assert float(attention_loss(half, s)) == pytest.approx(0.5 * 4 / 12)


def test_empty_mask_and_empty_attention_are_finite() -> None:
    nothing, something = torch.zeros(1, 3, 3), torch.ones(1, 3, 3)
    assert float(attention_loss(nothing, nothing)) == pytest.approx(0.001)
    assert float(attention_loss(something, nothing)) == pytest.approx(0.5 + 0.001)
    assert float(attention_loss(nothing, something)) == pytest.approx(0.5 + 0.001)
    assert float(attention_consistency(nothing, nothing)) == 0.0


def test_no_image_with_a_mask_costs_nothing_and_keeps_the_graph() -> None:
    f = soft((2, 3, 3), 9).requires_grad_()
    loss = attention_loss(f[:0], torch.zeros(0, 3, 3))
    assert loss.requires_grad
    loss.backward()
    assert f.grad is not None
    assert torch.equal(f.grad, torch.zeros_like(f))


def test_images_count_alike_whatever_the_size_of_their_masks() -> None:
    f = soft((2, 8, 8), 10)
    s = torch.zeros(2, 8, 8)
    s[0, :1, :1] = 1
    s[1] = 1
    apart = (attention_loss(f[:1], s[:1]) + attention_loss(f[1:], s[1:])) / 2
    assert torch.allclose(attention_loss(f, s), apart)


def test_gradients_reach_the_student_and_nothing_else() -> None:
    f, s = soft((2, 4, 4), 11).requires_grad_(), soft((2, 4, 4), 12).requires_grad_()
    attention_loss(f, s).backward()
    assert f.grad is not None
    assert s.grad is None
    a, b = soft((2, 3), 13).requires_grad_(), soft((2, 3), 14).requires_grad_()
    probability_consistency(a, b).backward()
    assert a.grad is not None
    assert b.grad is None
    f, g = soft((2, 4, 4), 15).requires_grad_(), soft((2, 4, 4), 16).requires_grad_()
    attention_consistency(f, g).backward()
    assert f.grad is not None
    assert g.grad is None


@pytest.mark.parametrize("name", ["attention_loss", "attention_consistency"])
def test_gradient_against_finite_differences(name: str) -> None:
    function = {"attention_loss": attention_loss, "attention_consistency": attention_consistency}[name]
    f = soft((1, 2, 2), 17).clone().requires_grad_()
    s = binary((1, 2, 2), 18)
    function(f, s).backward()
    assert f.grad is not None
    step = 1e-2
    for row, column in ((0, 0), (1, 1)):
        up, down = f.detach().clone(), f.detach().clone()
        up[0, row, column] += step
        down[0, row, column] -= step
        slope = (function(up, s) - function(down, s)) / (2 * step)
        assert float(f.grad[0, row, column]) == pytest.approx(float(slope), rel=2e-2, abs=1e-4)


def test_soft_cross_entropy_is_least_at_its_targets_and_equals_the_hard_one_for_one_hot_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    targets = torch.randn(6, 5, generator=generator).softmax(1).requires_grad_()
    found = soft_cross_entropy(logits, targets)
    q, log_p = targets.detach().numpy(), logits.detach().log_softmax(1).numpy()
    plain = -sum(float(q[i, k] * log_p[i, k]) for i in range(6) for k in range(5)) / 6
    assert float(found.detach()) == pytest.approx(plain, rel=1e-5)
    entropy = float(torch.special.entr(targets.detach()).sum(1).mean())
    least = float(soft_cross_entropy(targets.detach().log(), targets.detach()))
    assert least == pytest.approx(entropy, rel=1e-5)
    assert least < plain
    found.backward()
    assert targets.grad is None
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - targets).detach() / 6)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    hard = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(soft_cross_entropy(logits, torch.eye(5)[labels]), hard)


def test_soft_labels_give_neighbours_their_share() -> None:
    found = soft_labels(torch.tensor([0, 2, 4]), 5, spread=0.2)
    expected = [[0.8, 0.2, 0, 0, 0], [0, 0.1, 0.8, 0.1, 0], [0, 0, 0, 0.2, 0.8]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(soft_labels(torch.tensor([1, 0]), 2), torch.eye(2)[[1, 0]])


def test_ordinal_loss_against_the_plain_one_and_it_grows_with_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator)
    targets = torch.randn(7, 5, generator=generator).softmax(1)
    p, q = logits.double().softmax(1).numpy(), targets.double().numpy()
    plain = 0.0
    for image in range(7):
        for k in range(1, 5):
            above, wanted = p[image, k:].sum(), q[image, k:].sum()
            plain -= wanted * np.log(above) + (1 - wanted) * np.log(1 - above)
    assert float(ordinal_loss(logits, targets)) == pytest.approx(plain / 28, rel=1e-5)
    certain = 20.0 * torch.eye(5)
    costs = [float(ordinal_loss(certain[[grade]], torch.eye(5)[[0]])) for grade in range(5)]
    assert costs[0] == pytest.approx(0, abs=1e-6)
    assert (np.diff(costs) > 4.5).all()  # with each grade one more of four thresholds is wrong, by almost 20 nats
    assert float(ordinal_loss(torch.tensor([[1.0, -1.0]]), torch.eye(2)[[0]])) == pytest.approx(
        float(torch.nn.functional.cross_entropy(torch.tensor([[1.0, -1.0]]), torch.tensor([0]))), rel=1e-6
    )
    extreme = torch.tensor([[200.0, -200, 0]], requires_grad=True)
    ordinal_loss(extreme, torch.eye(3)[[1]]).backward()
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()


def test_mixtures_keep_most_of_each_image_and_mix_targets_alike() -> None:
    torch.manual_seed(0)
    drawn = [draw_mixture(6, 0.75) for _ in range(200)]
    assert all(0.5 <= one.weight <= 1 and sorted(one.order.tolist()) == list(range(6)) for one in drawn)
    mixture = Mixture(0.75, torch.tensor([1, 0, 2]))
    values = torch.tensor([[0.0, 4.0], [8.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(mixed(values, mixture), torch.tensor([[2.0, 3.0], [6.0, 1.0], [1.0, 1.0]]))
    targets = soft_labels(torch.tensor([0, 2, 1]), 3)
    torch.testing.assert_close(mixed(targets, mixture).sum(1), torch.ones(3))
    assert torch.equal(mixed(values, Mixture(1.0, mixture.order)), values)
