"""The mean-teacher task: which terms each of the papers' rows computes, where gradients go, and the total of Eq. 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dcmt.config import LossConfig
from dcmt.losses import Mixture, mixed, ordinal_loss, soft_cross_entropy, soft_labels
from dcmt.mean_teacher import MeanTeacher
from dcmt.schedules import exponential_ramp
from knee.task import Batch, Grading, StepLosses

Nets = Callable[..., nn.Module]
Batches = Callable[..., Batch]
Array = NDArray[np.float64]

ROWS = {
    "supervised": ({"attention": 0, "probability_consistency": 0, "attention_consistency": 0}, {"grade"}),
    "supervised, λ_a only": (
        {"inside_weight": 0, "probability_consistency": 0, "attention_consistency": 0},
        {"grade", "attention"},
    ),
    "supervised, attention": ({"probability_consistency": 0, "attention_consistency": 0}, {"grade", "attention"}),
    "mean teacher": ({"attention": 0, "attention_consistency": 0}, {"grade", "probability_consistency"}),
    "DC-MT (NAC)": ({"attention_consistency": 0}, {"grade", "attention", "probability_consistency"}),
    "DC-MT": ({}, {"grade", "attention", "probability_consistency", "attention_consistency"}),
}


def make(student: nn.Module, *, decay: float = 0.9, ramp_steps: int = 10, **weights: float) -> MeanTeacher:
    return MeanTeacher(student, loss=LossConfig(**weights), decay=decay, ramp_steps=ramp_steps)


@pytest.mark.parametrize("row", list(ROWS))
def test_each_row_of_the_paper_computes_just_its_terms(row: str, small_grader: Nets, small_batch: Batches) -> None:
    weights, terms = ROWS[row]
    task = make(small_grader(), **weights)
    calls = []
    task.teacher.register_forward_hook(lambda *_: calls.append(1))
    losses = task.losses(small_batch(), 3)
    assert set(losses.terms) == terms
    assert len(calls) == (1 if terms & {"probability_consistency", "attention_consistency"} else 0)
    assert all(torch.isfinite(value) for value in (*losses.terms.values(), *losses.monitors.values()))


def test_teacher_gets_no_gradient_and_the_student_one_everywhere(small_grader: Nets, small_batch: Batches) -> None:
    task = make(small_grader())
    task.losses(small_batch(), 5).total.backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert all(parameter.grad is not None for parameter in task.student.parameters())
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.student.parameters()}


class Fixed(nn.Module):
    """Says the same of every image: logits (K,) and class maps (K, h, w)."""

    def __init__(self, logits: list[float], maps: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.maps = nn.Parameter(maps)

    def forward(self, images: torch.Tensor) -> Grading:
        return Grading(self.logits.expand(len(images), -1), self.maps.expand(len(images), -1, -1, -1))


def test_class_of_an_unlabeled_image_is_the_teachers_for_both_networks(small_batch: Batches) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 4, 4, generator=generator)
    task = make(Fixed([5.0, 0, 0], maps), attention=0)
    with torch.no_grad():
        task.teacher.logits.copy_(torch.tensor([0.0, 0, 5]))
        task.teacher.maps.copy_(torch.rand(3, 4, 4, generator=generator))
    batch = small_batch(1, 3)._replace(grades=torch.tensor([1]))
    task.losses(batch, 10).terms["attention_consistency"].backward()
    reached = task.student.maps.grad.abs().sum((1, 2)) > 0
    # Grade 1 is the labeled image's own, 2 the teacher's word on the others; the student's own prediction is 0.
    assert reached.tolist() == [False, True, True]


def test_attention_loss_takes_only_labeled_images_that_have_a_mask(small_grader: Nets, small_batch: Batches) -> None:
    task = make(small_grader(norm=False))
    all_masked, two = small_batch(4, 2, seed=1), small_batch(4, 2, seed=1, masked=2)

    def attention(batch: Batch) -> float:
        return task.losses(batch, 0).terms["attention"].item()

    other_pixels = all_masked.student.clone()
    other_pixels[2:] = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(9))
    assert attention(two._replace(student=other_pixels)) == attention(two)
    assert attention(all_masked) != attention(two)


def test_no_mask_at_all_is_no_attention_loss_but_a_finite_total(small_grader: Nets, small_batch: Batches) -> None:
    losses = make(small_grader()).losses(small_batch(4, 2, masked=0), 0)
    assert losses.terms["attention"].item() == 0.0
    losses.total.backward()
    assert torch.isfinite(losses.total)


def test_without_unlabeled_images_everything_holds(small_grader: Nets, small_batch: Batches) -> None:
    losses = make(small_grader()).losses(small_batch(3, 0), 0)
    assert "unlabeled/agreement" not in losses.monitors
    assert torch.isfinite(losses.total)


def test_same_views_and_weights_cost_no_consistency(small_grader: Nets, small_batch: Batches) -> None:
    batch = small_batch()
    losses = make(small_grader()).losses(batch._replace(teacher=batch.student), 4)
    assert losses.terms["probability_consistency"].item() == 0.0
    assert losses.terms["attention_consistency"].item() == 0.0
    assert float(losses.monitors["unlabeled/agreement"]) == 1.0


@pytest.mark.parametrize(
    ("weights", "asked", "used"),
    [
        ({}, "own", "own"),
        ({}, "copy", "copy"),
        ({"probability_consistency": 0, "attention_consistency": 0}, "own", "ema"),
        ({"probability_consistency": 0, "attention_consistency": 0}, "ema", "ema"),
        ({"probability_consistency": 0, "attention_consistency": 0}, "copy", "copy"),
    ],
)
def test_statistics_follow_the_student_where_the_teacher_does_not_run(
    weights: dict[str, float], asked: Any, used: str, small_grader: Nets, small_batch: Batches
) -> None:
    task = MeanTeacher(small_grader(), loss=LossConfig(**weights), decay=0.5, ramp_steps=1, buffers=asked)
    assert task.buffers == used
    start = task.teacher.norm.running_mean.clone()
    for step in range(3):
        task.losses(small_batch(seed=step), step)
        task.after_update(step)
    assert not torch.equal(task.teacher.norm.running_mean, start)


def test_flip_consistency_waits_for_the_ramp_and_symmetry_does_not(small_grader: Nets, small_batch: Batches) -> None:
    weights = LossConfig(
        symmetry=True, flip_consistency=10.0, probability_consistency=0, attention_consistency=0, attention=0
    )
    task = MeanTeacher(small_grader(), loss=weights, decay=0.9, ramp_steps=2, ramp_start=3)
    graded: list[int] = []
    task.student.register_forward_hook(lambda _, images, __: graded.append(len(images[0])))
    before, after = (task.losses(small_batch(4, 2, seed=1), step).terms for step in (2, 3))
    assert set(before) == {"grade"}
    assert set(after) == {"grade", "flip_consistency", "flip_consistency_unlabeled"}
    assert graded == [4 + 4, 6 + 6]


def test_before_the_ramp_starts_it_is_supervised_training(small_grader: Nets, small_batch: Batches) -> None:
    """Bit for bit that of the labeled images alone: weights, statistics, teacher; from then on the teacher is asked."""
    waiting = MeanTeacher(small_grader(), loss=LossConfig(), decay=0.9, ramp_steps=2, ramp_start=3)
    alone = make(small_grader(), probability_consistency=0, attention_consistency=0)
    calls: list[int] = []
    waiting.teacher.register_forward_hook(lambda *_: calls.append(1))
    optimizers = [torch.optim.SGD(task.parameters(), lr=0.1) for task in (waiting, alone)]
    for step in range(3):
        totals = []
        both = small_batch(4, 2, seed=step)
        labeled = both._replace(student=both.student[:4], teacher=both.teacher[:4])
        for task, optimizer, batch in zip((waiting, alone), optimizers, (both, labeled), strict=True):
            losses = task.losses(batch, step)
            assert set(losses.terms) == {"grade", "attention"}
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            ramp = task.after_update(step)["ramp"]
            assert ramp == 0.0 or task is alone
            totals.append(losses.total.item())
        assert totals[0] == totals[1]
    for network in ("student", "teacher"):
        found, wanted = (getattr(task, network).state_dict() for task in (waiting, alone))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert calls == []
    terms = waiting.losses(small_batch(), 3).terms
    assert {"probability_consistency", "attention_consistency"} <= set(terms)
    assert calls == [1]
    assert waiting.after_update(3)["ramp"] == pytest.approx(np.exp(-5))
    assert waiting.after_update(5)["ramp"] == 1.0


def test_schedules_that_are_logged(small_grader: Nets) -> None:
    task = make(small_grader(), decay=0.6, ramp_steps=4)
    logged = [task.after_update(step) for step in range(6)]
    assert [entry["teacher_decay"] for entry in logged] == pytest.approx([0, 0.5, 0.6, 0.6, 0.6, 0.6])
    assert [entry["ramp"] for entry in logged] == [exponential_ramp(step, 4) for step in range(6)]


def test_validation_is_asked_with_both_networks(small_grader: Nets) -> None:
    task = make(small_grader())
    assert task.validate(1) == {}
    seen: list[object] = []
    task.validation = lambda networks, step: seen.extend([list(networks), step]) or {"x": 1.0}  # type: ignore[func-returns-value]
    assert task.validate(7) == {"x": 1.0}
    assert seen == [["student", "teacher"], 7]


def plain_softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    result: Array = powers / powers.sum(1, keepdims=True)
    return result


def plain_up_sampled(small: Array, size: int) -> Array:
    """Bilinear, half-pixel centers, edges repeated, one pixel at a time."""
    height, width = small.shape
    found = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = small[top, left] * (1 - x + left) + small[top, right] * (x - left)
            below = small[bottom, left] * (1 - x + left) + small[bottom, right] * (x - left)
            found[row, column] = above * (1 - y + top) + below * (y - top)
    return found


def plain_attention(maps: Array, grade: int, size: int) -> Array:
    big = plain_up_sampled(np.maximum(maps[grade], 0), size)
    if big.max() - big.min() <= 1e-6:
        return np.zeros_like(big)
    x = (big - big.min()) / (big.max() - big.min())
    f: Array = 1 / (1 + np.exp(-100 * (x - 0.4)))
    return f


def plain_distance(a: Array, b: Array) -> float:
    return float(((a - b) ** 2).sum() / max(a.sum() + b.sum(), 1e-6))


def plain_total(student: Grading, teacher: Grading, batch: Batch, step: int, ramp_steps: int, w: LossConfig) -> float:
    """Eq. 5 in NumPy and float64, image by image."""
    s_logits, t_logits = (g.logits.detach().double().numpy() for g in (student, teacher))
    s_maps, t_maps = (g.class_maps.detach().double().numpy() for g in (student, teacher))
    grades, size = batch.grades.tolist(), batch.student.shape[-1]
    s_share, t_share = plain_softmax(s_logits), plain_softmax(t_logits)
    grade = np.mean([-np.log(s_share[i, grade]) for i, grade in enumerate(grades)])
    classes = grades + t_logits[len(grades) :].argmax(1).tolist()
    f_student = [plain_attention(s_maps[i], k, size) for i, k in enumerate(classes)]
    f_teacher = [plain_attention(t_maps[i], k, size) for i, k in enumerate(classes)]
    attention = []
    for i, mask in enumerate(batch.masks.double().numpy()):
        if batch.has_mask[i]:
            inside = 1 - (f_student[i] * mask).sum() / max(f_student[i].sum(), 1e-6)
            attention.append(w.mse_weight * plain_distance(f_student[i], mask) + w.inside_weight * inside)
    consistency = np.mean((s_share - t_share) ** 2)
    alike = np.mean([plain_distance(a, b) for a, b in zip(f_student, f_teacher, strict=True)])
    ramp = np.exp(-5 * (1 - min(step / ramp_steps, 1)) ** 2)
    total = w.grade * grade + w.attention * np.mean(attention)
    return float(total + ramp * (w.probability_consistency * consistency + w.attention_consistency * alike))


@pytest.mark.parametrize("step", [0, 4, 10, 25])
@pytest.mark.parametrize(("labeled", "unlabeled", "masked"), [(4, 2, 4), (3, 3, 1), (5, 0, 5)])
def test_total_against_a_plain_float64_one(
    step: int, labeled: int, unlabeled: int, masked: int, small_grader: Nets, small_batch: Batches
) -> None:
    weights = LossConfig(
        grade=0.7, attention=1.3, probability_consistency=5.0, attention_consistency=0.4, inside_weight=0.1
    )
    task = MeanTeacher(small_grader(norm=False), loss=weights, decay=0.9, ramp_steps=10)
    task.teacher.load_state_dict(small_grader(seed=5, norm=False).state_dict())
    batch = small_batch(labeled, unlabeled, seed=step, masked=masked)
    found: StepLosses = task.losses(batch, step)
    wanted = plain_total(task.student(batch.student), task.teacher(batch.teacher), batch, step, 10, weights)
    # The map of the sharp threshold is float32: an error of 1e-6 in x is one of 2.5e-5 in f.
    assert found.total.item() == pytest.approx(wanted, rel=2e-4)


def test_golden_losses_of_four_steps(small_grader: Nets, small_batch: Batches) -> None:
    """Four steps of DC-MT, float32, one thread: what they cost when this was written.

    Tolerance 1e-3, relative: the threshold at ω = 100 makes much of the last bits in which machines differ.
    """
    task = make(small_grader(seed=3), decay=0.9, ramp_steps=4)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    found = []
    for step in range(4):
        losses = task.losses(small_batch(seed=step), step)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        task.after_update(step)
        found.append(losses.total.item())
    assert found == pytest.approx([1.638885, 1.493641, 1.532164, 1.967825], rel=1e-3)


SUPERVISED = {"attention": 0, "attention_consistency": 0, "probability_consistency": 0}


def test_soft_targets_of_unlabeled_images_are_a_term_of_their_own(small_grader: Nets, small_batch: Batches) -> None:
    targets = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    batch = small_batch(4, 2)._replace(targets=targets)
    task = make(small_grader(norm=False), **SUPERVISED, grade=0.3, self_training=0.7)
    losses = task.losses(batch, 3)
    assert set(losses.terms) == {"grade", "self_training"}
    log_p = task.student(batch.student).logits.log_softmax(1)
    torch.testing.assert_close(losses.terms["self_training"], -(targets * log_p[4:]).sum(1).mean())
    torch.testing.assert_close(losses.total, 0.3 * losses.terms["grade"] + 0.7 * losses.terms["self_training"])
    assert set(make(small_grader(), **SUPERVISED, self_training=0).losses(batch, 3).terms) == {"grade"}


def test_soft_labels_replace_the_hard_ones_and_the_ordinal_loss_is_added(
    small_grader: Nets, small_batch: Batches
) -> None:
    batch = small_batch(4, 0)
    task = make(small_grader(norm=False), **SUPERVISED, label_spread=0.2, ordinal=0.5)
    losses = task.losses(batch, 0)
    logits = task.student(batch.student).logits
    targets = soft_labels(batch.grades, 3, spread=0.2)
    torch.testing.assert_close(losses.terms["grade"], soft_cross_entropy(logits, targets))
    torch.testing.assert_close(losses.terms["ordinal"], ordinal_loss(logits, targets))
    torch.testing.assert_close(losses.total, losses.terms["grade"] + 0.5 * losses.terms["ordinal"])


def test_mixup_mixes_images_and_targets_of_labeled_and_unlabeled_images_alike(
    small_grader: Nets, small_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = Mixture(0.75, torch.tensor([4, 0, 1, 2, 3, 5]))
    monkeypatch.setattr("dcmt.mean_teacher.draw_mixture", lambda count, alpha: mixture)
    targets = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    batch = small_batch(4, 2)._replace(targets=targets)
    task = make(small_grader(norm=False), **SUPERVISED, mixup=0.75)
    losses = task.losses(batch, 0)
    logits = task.student(mixed(batch.student, mixture)).logits
    wanted = mixed(torch.cat([torch.eye(3)[batch.grades], targets]), mixture)
    torch.testing.assert_close(losses.terms["grade"], soft_cross_entropy(logits[:4], wanted[:4]))
    torch.testing.assert_close(losses.terms["self_training"], soft_cross_entropy(logits[4:], wanted[4:]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixup": 0.5}, "loss.mixup is 0.5; it must be 0 if attention and attention_consistency have"),
        ({"label_spread": 0.1, "symmetry": True}, "loss.label_spread is 0.1; it must be 0 if loss.symmetry is true"),
        ({"label_spread": 1.0}, "loss.label_spread is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_combinations_without_a_meaning_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)
