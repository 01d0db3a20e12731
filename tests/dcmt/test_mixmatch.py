"""MixMatch: the total against a plain second implementation, sharpening, limits, gradients, options, and a whole run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dcmt.config import GraderConfig, LossConfig
from dcmt.losses import Mixture
from dcmt.mixmatch import MixMatch
from dcmt.train import train_grader
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import read_metrics
from knee.errors import UserError
from knee.task import Batch

Make = Callable[..., GraderConfig]
Nets = Callable[..., nn.Module]
Batches = Callable[..., Batch]
Array = NDArray[np.float64]
METHOD: dict[str, Any] = {
    "method": "mixmatch",
    "loss.mixup": 0.75,
    "loss.attention": 0,
    "loss.attention_consistency": 0,
    "loss.probability_consistency": 20,
    "loss.teacher_temperature": 0.5,
    "loss.teacher_flip": True,
}


def make(student: nn.Module, *, ramp_start: int = 0, **loss: Any) -> MixMatch:
    options = {"mixup": 0.75, "attention": 0.0, "attention_consistency": 0.0, "probability_consistency": 20.0, **loss}
    return MixMatch(student, loss=LossConfig(**options), decay=0.9, ramp_steps=0, ramp_start=ramp_start)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@pytest.mark.parametrize("shape", [(4, 2), (1, 5), (3, 3)])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_total_against_a_plain_float64_one(
    shape: tuple[int, int],
    temperature: float,
    small_grader: Nets,
    small_batch: Batches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labeled, count = shape[0], sum(shape)
    order = np.random.default_rng(count).permutation(count)
    monkeypatch.setattr("dcmt.mixmatch.draw_mixture", lambda number, alpha: Mixture(0.7, torch.from_numpy(order)))
    task = make(small_grader(norm=False), teacher_temperature=temperature, teacher_flip=True)
    batch = small_batch(*shape)
    with torch.no_grad():
        sides = [task.teacher(view).logits.double().numpy() for view in (batch.teacher, batch.teacher.flip(-1))]
        blended = 0.7 * batch.student + 0.3 * batch.student[torch.from_numpy(order)]
        answers = softmax(task.student(blended).logits.double().numpy())
    mean = (softmax(sides[0]) + softmax(sides[1]))[labeled:] / 2
    powers = mean ** (1 / temperature)
    targets = np.concatenate([np.eye(3)[batch.grades.numpy()], powers / powers.sum(1, keepdims=True)])
    targets = 0.7 * targets + 0.3 * targets[order]
    entropy = -(targets[:labeled] * np.log(answers[:labeled])).sum(1).mean()
    distance = ((targets - answers)[labeled:] ** 2).sum() / (3 * shape[1])
    losses = task.losses(batch, 0)
    assert losses.terms["grade"].item() == pytest.approx(entropy, rel=1e-4)
    assert losses.terms["probability_consistency"].item() == pytest.approx(distance, rel=1e-3)
    assert losses.total.item() == pytest.approx(entropy + 20 * distance, rel=1e-4)


def test_before_the_ramp_only_labeled_images_are_mixed(
    small_grader: Nets, small_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def draw(count: int, alpha: float) -> Mixture:
        counts.append(count)
        return Mixture(1.0, torch.arange(count))

    monkeypatch.setattr("dcmt.mixmatch.draw_mixture", draw)
    task = make(small_grader(norm=False), ramp_start=3)
    batch = small_batch(4, 2)
    before, after = task.losses(batch, 2), task.losses(batch, 3)
    assert (set(before.terms), counts) == ({"grade"}, [4, 6])
    plain = nn.functional.cross_entropy(task.student(batch.student[:4]).logits, batch.grades)
    assert before.total.item() == pytest.approx(plain.item(), rel=1e-5)  # λ = 1 is no mixup
    assert set(after.terms) == {"grade", "probability_consistency"}
    assert set(after.monitors) == {"unlabeled/agreement", "unlabeled/entropy"}


def test_targets_are_sharper_at_lower_temperatures_and_sum_to_one(small_grader: Nets, small_batch: Batches) -> None:
    images = small_batch(1, 8).teacher
    student = small_grader(norm=False)
    with torch.no_grad():
        student.classifier.weight.mul_(50)
    entropies = []
    for temperature in (2.0, 1.0, 0.5, 0.01):
        guesses = make(student, teacher_temperature=temperature).guess(images)
        torch.testing.assert_close(guesses.sum(1), torch.ones(9))
        entropies.append(float(-(guesses * guesses.clamp_min(1e-12).log()).sum(1).mean()))
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[0] < math.log(3)


def test_no_gradient_reaches_the_teacher(small_grader: Nets, small_batch: Batches) -> None:
    task = make(small_grader())
    task.losses(small_batch(3, 4), 0).total.backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert all(parameter.grad is not None for parameter in task.student.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.mixup": 0}, "method is mixmatch"),
        ({"loss.probability_consistency": 0, "data.unlabeled_per_batch": 0}, "rows/mixmatch.yaml"),
        ({"loss.ordinal": 0.5}, "loss.ordinal 0"),
        ({"loss.attention": 1}, "loss.mixup"),
        ({"data.targets": "targets.csv"}, "remove data.targets"),
        ({"method": "mean_teacher"}, "method: mixmatch"),
    ],
)
def test_options_without_a_meaning_are_refused(changes: dict[str, Any], message: str, grader_config: Make) -> None:
    with pytest.raises(UserError, match=message):
        grader_config(**{**METHOD, **changes})


def test_a_run_trains_and_resumes_to_the_same_weights(grader_config: Make, tmp_path: Path) -> None:
    config = grader_config(**METHOD)
    run = create_run(tmp_path / "whole", config, kind="grader")
    steps = train_grader(config, run, resume=False).step
    cut = RunFolder(tmp_path / "cut")
    shutil.copytree(run.path, cut.path)
    shutil.rmtree(cut.path / "checkpoints" / f"step_{steps:08d}")
    assert train_grader(config, cut, resume=True).step == steps
    wanted, found = (one.checkpoints.latest()[0] for one in (run, cut))
    assert wanted is not None
    assert found is not None
    for name in ("student", "teacher"):
        pairs = wanted.tensors(name), found.tensors(name)
        assert [key for key in pairs[0] if not torch.equal(pairs[0][key], pairs[1][key])] == []
    assert "loss/probability_consistency" in {row[1] for row in read_metrics(run.path / "metrics.csv")}
    with pytest.raises(UserError, match=r"loss\.mixup"):
        config.refuse_parts(2)
