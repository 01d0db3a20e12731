"""FixMatch and SoftMatch: the total against a plain second implementation, limits, gradients, averages, and a whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcmt.config import FixMatchConfig, LossConfig
from dcmt.fixmatch import (
    Averages,
    FixMatch,
    align_distribution,
    pseudo_label_loss,
    softmatch_weights,
    threshold_weights,
)
from dcmt.losses import attention_loss
from knee.attention import attention_mask
from knee.task import Batch, Grading

from .fixmatch_options import make, sure

Nets = Callable[..., nn.Module]
Batches = Callable[..., Batch]
Array = NDArray[np.float64]


def plain_softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


class Plain:
    """FixMatch in NumPy and float64, image by image, with moving averages of its own."""

    def __init__(self, options: FixMatchConfig, grades: int = 3) -> None:
        self.options = options
        self.predictions = np.full(grades, 1 / grades)
        self.labels = np.full(grades, 1 / grades)
        self.confidence, self.variance = 1 / grades, 1.0

    def total(self, logits: Array, grades: list[int], unlabeled: int, step: int) -> float:
        """``logits`` of the weak views, labeled first, then of the strong ones."""
        count = len(grades)
        shares = plain_softmax(logits)
        grade = float(np.mean([-math.log(shares[i, k]) for i, k in enumerate(grades)]))
        q, p = shares[count : count + unlabeled], shares[count + unlabeled :]
        labels, weights = self._labels(q, grades, step)
        unsupervised = sum(-w * math.log(p[b, k]) for b, (k, w) in enumerate(zip(labels, weights, strict=True)))
        return grade + self.options.unlabeled_weight * unsupervised / unlabeled

    def _labels(self, q: Array, grades: list[int], step: int) -> tuple[list[int], list[float]]:
        options, kept = self.options, min(self.options.momentum, (step + 1) / (step + 2))
        trusted = labeling = q
        if options.distribution_alignment != "none":
            frequency = np.array([grades.count(k) / len(grades) for k in range(len(self.labels))])
            self.predictions = kept * self.predictions + (1 - kept) * q.mean(0)
            self.labels = kept * self.labels + (1 - kept) * frequency
            prior = options.distribution_alignment == "labeled_prior"
            ratio = (self.labels if prior else 1 / len(self.labels)) / self.predictions
            trusted = q * ratio / (q * ratio).sum(1)[:, None]
            labeling = trusted if prior else q
        sureness = [float(row.max()) for row in trusted]
        if options.weighting == "threshold":
            weights = [1.0 if c > options.threshold else 0.0 for c in sureness]
        else:
            middle = sum(sureness) / len(sureness)
            spread = sum((c - middle) ** 2 for c in sureness) / (len(sureness) - 1)
            self.confidence = kept * self.confidence + (1 - kept) * middle
            self.variance = kept * self.variance + (1 - kept) * spread
            mu, two = self.confidence, 2 * self.variance
            weights = [math.exp(-((c - mu) ** 2) / two) if c < mu else 1.0 for c in sureness]
        return [int(row.argmax()) for row in labeling], weights


@pytest.mark.parametrize("shape", [(4, 2), (1, 5), (6, 9)])
@pytest.mark.parametrize("alignment", ["none", "labeled_prior", "uniform"])
@pytest.mark.parametrize(
    "weighting", [{"threshold": 0.8, "momentum": 0.6}, {"weighting": "softmatch", "momentum": 0.999}]
)
def test_total_against_a_plain_float64_one(
    shape: tuple[int, int], alignment: str, weighting: dict[str, Any], small_grader: Nets, small_batch: Batches
) -> None:
    """Over four steps, so that the moving averages of both have a history; the student stays as it is."""
    task = make(sure(small_grader(norm=False)), unlabeled_weight=1.7, distribution_alignment=alignment, **weighting)
    plain = Plain(task.options)
    for step in range(4):
        batch = small_batch(*shape, seed=step)
        views = torch.cat([batch.teacher, batch.student[shape[0] :]])
        logits = task.student(views).logits.detach().double().numpy()
        wanted = plain.total(logits, batch.grades.tolist(), shape[1], step)
        assert task.losses(batch, step).total.item() == pytest.approx(wanted, rel=1e-4)
    averages = task.averages
    np.testing.assert_allclose(averages.predictions, plain.predictions, rtol=1e-5)
    np.testing.assert_allclose(averages.labels, plain.labels, rtol=1e-5)
    found = averages.confidence.item(), averages.variance.item()
    assert found == pytest.approx((plain.confidence, plain.variance), rel=1e-5)


def test_some_pseudo_labels_of_the_comparison_are_used_and_some_are_not(
    small_grader: Nets, small_batch: Batches
) -> None:
    task = make(sure(small_grader(norm=False)), threshold=0.8)
    batches = [small_batch(6, 9, seed=step) for step in range(4)]
    pseudo = [task.pseudo_labels(task.student(batch.teacher[6:]).logits, batch.grades, 0) for batch in batches]
    weights, labels = torch.cat([one.weights for one in pseudo]), torch.cat([one.labels for one in pseudo])
    assert 0.1 < weights.mean() < 0.9
    assert set(labels.tolist()) == {0, 1, 2}


def test_no_gradient_passes_the_weak_view_and_none_reaches_the_teacher(
    small_grader: Nets, small_batch: Batches
) -> None:
    for options in ({"threshold": 0.0}, {"weighting": "softmatch", "distribution_alignment": "labeled_prior"}):
        task = make(small_grader(norm=False), **options)
        batch = small_batch(3, 4)
        batch.teacher.requires_grad_()
        batch.student.requires_grad_()
        task.losses(batch, 0).terms["pseudo_label"].backward()
        assert batch.teacher.grad is not None
        assert batch.student.grad is not None
        assert batch.teacher.grad.abs().sum() == 0
        assert batch.student.grad[:3].abs().sum() == 0
        assert (batch.student.grad[3:].abs().sum((1, 2, 3)) > 0).all()
        assert all(parameter.grad is None for parameter in task.teacher.parameters())
        assert all(parameter.grad is not None for parameter in task.student.parameters())
        assert {id(p) for p in task.parameters()} == {id(p) for p in task.student.parameters()}


def test_one_pass_grades_weak_views_of_all_and_strong_ones_of_the_unlabeled(
    small_grader: Nets, small_batch: Batches
) -> None:
    task = make(small_grader())
    seen: list[Tensor] = []
    task.student.register_forward_hook(lambda _, images, __: seen.append(images[0]))
    task.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher is only evaluated"))
    batch = small_batch(4, 2)
    task.losses(batch, 0)
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.cat([batch.teacher, batch.student[4:]]))


def test_loss_is_averaged_over_all_images_not_over_the_used_ones() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 1]])
    labels, weights = torch.tensor([0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0])
    expected = -math.log(math.exp(2) / (math.exp(2) + 2)) / 4
    assert pseudo_label_loss(logits, labels, weights).item() == pytest.approx(expected)


def test_threshold_one_uses_nothing_and_zero_uses_everything(small_grader: Nets, small_batch: Batches) -> None:
    certain = sure(small_grader(norm=False), times=1e6)
    batch = small_batch(4, 5)
    assert certain(batch.teacher).logits.softmax(1).amax() == 1  # rounded, so ≥ would use it
    nothing = make(certain, threshold=1.0).losses(batch, 0)
    assert nothing.terms["pseudo_label"].item() == 0.0
    assert nothing.total.item() == nothing.terms["grade"].item()
    assert nothing.monitors["unlabeled/used"].item() == nothing.monitors["unlabeled/weight"].item() == 0.0
    everything = make(certain, threshold=0.0).losses(batch, 0)
    assert everything.monitors["unlabeled/used"].item() == everything.monitors["unlabeled/weight"].item() == 1.0
    assert threshold_weights(torch.tensor([0.94, 0.95, 0.96]), 0.95).tolist() == [0, 0, 1]


def test_without_unlabeled_images_or_their_weight_it_is_supervised(small_grader: Nets, small_batch: Batches) -> None:
    for task, batch in (
        (make(small_grader()), small_batch(4, 0)),
        (make(small_grader(), unlabeled_weight=0.0), small_batch(4, 3)),
    ):
        sizes: list[int] = []
        task.student.register_forward_hook(lambda _, images, __, sizes=sizes: sizes.append(len(images[0])))
        losses = task.losses(batch, 0)
        assert set(losses.terms) == {"grade"}
        assert losses.monitors == {}
        assert sizes == [4]


def test_softmatch_weights_are_in_the_unit_interval_and_never_fall() -> None:
    confidences = torch.linspace(0, 1, 201)
    for mean in (0.2, 0.7, 1.0):
        for variance in (0.0, 1e-4, 0.02, 1.0):
            weights = softmatch_weights(confidences, torch.tensor(mean), torch.tensor(variance))
            assert ((weights >= 0) & (weights <= 1)).all()
            assert (weights.diff() >= 0).all()
            assert (weights[confidences >= mean] == 1).all()
    one_below = softmatch_weights(torch.tensor([0.5]), torch.tensor(0.7), torch.tensor(0.04))
    assert one_below.item() == pytest.approx(math.exp(-0.5))


def test_aligned_distributions_sum_to_one_and_their_mean_moves_to_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    for grades in (2, 3, 5):
        q = torch.rand(64, grades, generator=generator).square().softmax(1)
        target = torch.rand(grades, generator=generator).softmax(0)
        aligned = align_distribution(q, q.mean(0), target)
        torch.testing.assert_close(aligned.sum(1), torch.ones(64))
        assert (aligned.mean(0) - target).abs().sum() < 0.2 * (q.mean(0) - target).abs().sum()
        torch.testing.assert_close(align_distribution(q, target, target), q)
    collapsed = align_distribution(torch.eye(3), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0.5, 0.5]))
    torch.testing.assert_close(collapsed, torch.eye(3))


class Says(nn.Module):
    """Gives the same logits (K,) to every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Grading:
        logits = self.logits.expand(len(images), -1)
        return Grading(logits, logits[:, :, None, None].expand(-1, -1, 4, 4))


def test_uniform_alignment_changes_the_weights_only_and_the_labeled_prior_the_labels_too() -> None:
    q = [0.5, 0.3, 0.2]
    weak = torch.tensor(q).log()[None]
    grades = torch.tensor([2, 2, 2, 2])
    for alignment, label, confidence in (("none", 0, 0.5), ("uniform", 0, None), ("labeled_prior", 2, None)):
        task = make(Says([math.log(share) for share in q]), distribution_alignment=alignment, momentum=0.0)
        pseudo = task.pseudo_labels(weak, grades, 0)
        assert pseudo.labels.tolist() == [label], alignment
        torch.testing.assert_close(pseudo.probabilities.sum(1), torch.ones(1))
        if confidence:
            assert pseudo.probabilities.amax().item() == pytest.approx(confidence)
    # Aligned, the mean prediction itself is uniform: nothing is above 0.4, where unaligned 0.5 is.
    weights = [
        make(Says(q), distribution_alignment=alignment, momentum=0.0, threshold=0.4).pseudo_labels(weak, grades, 0)
        for alignment in ("none", "uniform")
    ]
    assert [one.weights.tolist() for one in weights] == [[1.0], [0.0]]


def test_the_averages_starting_values_count_as_one_batch(small_batch: Batches) -> None:
    task = make(Says([2.0, 0.0, 0.0]), distribution_alignment="labeled_prior", weighting="softmatch")
    q = np.exp([2.0, 0, 0]) / np.exp([2.0, 0, 0]).sum()
    batch = small_batch(2, 3)._replace(grades=torch.tensor([1, 1]))
    for step in range(3):
        task.losses(batch, step)
    np.testing.assert_allclose(task.averages.predictions, (np.full(3, 1 / 3) + 3 * q) / 4, rtol=1e-6)
    np.testing.assert_allclose(task.averages.labels, np.array([1, 10, 1]) / 12, rtol=1e-6)
    assert task.averages.variance.item() == pytest.approx(1 / 4)


def test_attention_loss_is_that_of_the_labeled_images_with_a_mask(small_grader: Nets, small_batch: Batches) -> None:
    task = make(small_grader(norm=False), attention=1.5)
    batch = small_batch(4, 2, masked=2)
    losses = task.losses(batch, 0)
    maps = task.student(batch.teacher[:2]).class_maps
    wanted = attention_loss(attention_mask(maps, batch.grades[:2], (16, 16)), batch.masks[:2])
    assert losses.terms["attention"].item() == pytest.approx(wanted.item(), rel=1e-4)
    parts = losses.terms["grade"] + losses.terms["pseudo_label"] + 1.5 * losses.terms["attention"]
    assert losses.total.item() == pytest.approx(parts.item(), rel=1e-6)
    assert {"empty_share", "gradient_share"} < set(losses.monitors)


def test_what_is_watched(small_grader: Nets, small_batch: Batches) -> None:
    batch = small_batch(4, 6)
    monitors = make(small_grader(norm=False)).losses(batch._replace(teacher=batch.student), 0).monitors
    assert set(monitors) == {"unlabeled/used", "unlabeled/weight", "unlabeled/agreement", "unlabeled/entropy"}
    assert monitors["unlabeled/agreement"].item() == 1.0
    assert 0 < monitors["unlabeled/entropy"].item() <= math.log(3) + 1e-6


def test_teacher_follows_by_eq_1_and_its_statistics_by_averages(small_grader: Nets, small_batch: Batches) -> None:
    task = FixMatch(small_grader(), grades=3, loss=LossConfig(), options=FixMatchConfig(), decay=0.7, buffers="own")
    assert task.buffers == "ema"
    wanted = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    for step in range(3):
        task.losses(small_batch(seed=step), step)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.add_(0.1)
        decay = task.after_update(step)["teacher_decay"]
        assert decay == pytest.approx(min(0.7, step / (step + 1)))
        for name, value in task.student.state_dict().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for name, value in task.teacher.state_dict().items():
        torch.testing.assert_close(value, wanted[name])


def test_validation_is_given_student_and_teacher_only(small_grader: Nets) -> None:
    task = make(small_grader())
    assert task.validate(1) == {}
    seen: list[object] = []
    task.validation = lambda networks, step: seen.extend([list(networks), step]) or {"x": 1.0}  # type: ignore[func-returns-value]
    assert task.validate(7) == {"x": 1.0}
    assert seen == [["student", "teacher"], 7]
    assert list(task.networks) == ["student", "teacher", "averages"]


def test_half_precision_gives_float32_losses_and_averages(small_grader: Nets, small_batch: Batches) -> None:
    task = make(small_grader(), weighting="softmatch", distribution_alignment="labeled_prior", attention=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = task.losses(small_batch(4, 4), 0)
    assert losses.total.dtype == torch.float32
    assert torch.isfinite(losses.total)
    assert all(buffer.dtype == torch.float32 for buffer in task.averages.buffers())


def test_averages_start_uniform() -> None:
    averages = Averages(4)
    assert averages.predictions.tolist() == averages.labels.tolist() == [0.25] * 4
    assert (averages.confidence.item(), averages.variance.item()) == (0.25, 1.0)
    assert list(averages.parameters()) == []
