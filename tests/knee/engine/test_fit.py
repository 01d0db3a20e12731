"""The loop: steps that are not finite, warnings, early stopping, accumulation, clipping, what it records."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcmt.config import LossConfig
from dcmt.mean_teacher import MeanTeacher
from knee.engine.checkpoint import Checkpoints
from knee.engine.config import OptimizerConfig
from knee.engine.fit import Fit, make_optimizer
from knee.engine.tracking import Window
from knee.errors import NotFinite, UserError
from knee.task import Batch, StepLosses

Nets = Callable[..., nn.Module]
MakeFit = Callable[..., Fit]
State = dict[str, torch.Tensor]
Everything = Callable[[Fit], State]
AssertSame = Callable[[State, State], None]
Recorded = Callable[[Path], list[tuple[int, str, float]]]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_step_that_is_not_finite_is_skipped_and_leaves_no_trace(
    accumulation: int,
    make_fit: MakeFit,
    tmp_path: Path,
    everything: Everything,
    assert_same: AssertSame,
    recorded: Recorded,
) -> None:
    fit = make_fit(spoiled=frozenset({2}), steps=4, accumulation=accumulation, log_every=1, validate_every=9)
    states: list[dict[str, torch.Tensor]] = []
    step = fit.step

    def watched(batches: Any) -> None:
        step(batches)
        states.append(everything(fit))

    fit.step = watched  # type: ignore[method-assign]
    progress = fit.run()
    bad = 2 // accumulation
    assert progress.bad_steps == 1
    assert progress.step == 4
    assert_same(states[bad - 1], states[bad])
    assert all(torch.isfinite(value).all() for value in states[-1].values())
    rows = recorded(tmp_path / "run")
    assert [value for step, name, value in rows if name == "system/skipped_steps"] == [0.0] * bad + [1.0] * (4 - bad)
    assert [step for step, name, _ in rows if name == "loss/total"] == [n for n in (1, 2, 3, 4) if n != bad + 1]
    assert all(value == value for _, name, value in rows if name.startswith(("loss", "attention_map", "unlabeled")))


def test_gradient_that_is_not_finite_is_skipped_too(make_fit: MakeFit) -> None:
    fit = make_fit(steps=3)
    calls = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * (float("inf") if len(calls) == 2 else 1.0)

    next(iter(fit.task.networks["student"].parameters())).register_hook(spoil)
    assert fit.run().bad_steps == 1


def test_many_bad_steps_in_a_row_end_the_run_with_a_sentence(make_fit: MakeFit) -> None:
    fit = make_fit(spoiled=frozenset(range(1, 99)), steps=50, most_bad_steps=4)
    with pytest.raises(UserError, match=r"4 steps in a row .* step 4: grade nan.*optimizer.learning_rate") as caught:
        fit.run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoiled", [{2, 4}, {3, 5}])
def test_of_several_batches_a_step_the_bad_one_is_shown(spoiled: set[int], make_fit: MakeFit) -> None:
    fit = make_fit(spoiled=frozenset(spoiled), steps=50, most_bad_steps=2, accumulation=2)
    with pytest.raises(UserError, match=r"2 steps in a row .* step 2: grade nan, .*; lower optimizer"):
        fit.run()


def test_bad_steps_apart_do_not_end_the_run(make_fit: MakeFit) -> None:
    assert make_fit(spoiled=frozenset({1, 3, 5, 7}), steps=9, most_bad_steps=2).run().bad_steps == 4


class Idle(MeanTeacher):
    """One term is exactly 0, another has no gradient."""

    def losses(self, batch: Batch, step: int) -> StepLosses:
        found = super().losses(batch, step)
        terms = dict(found.terms)
        terms["probability_consistency"] = terms["probability_consistency"] * 0
        terms["attention_consistency"] = terms["attention_consistency"].detach()
        return found._replace(terms=terms)


def test_terms_that_teach_nothing_are_told_once(make_fit: MakeFit, small_grader: Nets, said: list[str]) -> None:
    fit = make_fit(steps=8)
    fit.task = Idle(small_grader(), loss=LossConfig(), decay=0.8, ramp_steps=6)
    fit.__post_init__()
    fit.run()
    warned = [line for line in said if line.startswith("warning")]
    assert len(warned) == 2
    assert any("loss/probability_consistency has a weight above 0" in line for line in warned)
    assert any("loss/attention_consistency" in line for line in warned)


def test_no_warning_where_every_term_teaches(make_fit: MakeFit, said: list[str]) -> None:
    make_fit().run()
    assert not [line for line in said if "warning" in line]


def test_early_stopping_and_the_best_checkpoint(make_fit: MakeFit, tmp_path: Path, said: list[str]) -> None:
    fit = make_fit(steps=40, validate_every=2, patience=2)  # the score is best at step 4
    progress = fit.run()
    assert (progress.step, progress.best_step, progress.best_value) == (8, 4, 0.0)
    assert "no better val/score in 2 validations: stopped early" in said[-1]
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.best().step == 4
    assert sorted(p.name for p in checkpoints.folder.glob("step_*")) == [
        "step_00000004",
        "step_00000006",
        "step_00000008",
    ]
    again = make_fit(steps=40, validate_every=2, patience=2, resume=True)
    assert again.run().step == 8  # resuming a run that stopped early does not train on


def test_without_validation_data_the_last_checkpoint_is_the_best(make_fit: MakeFit, tmp_path: Path) -> None:
    fit = make_fit(steps=4, validate_every=1, patience=2)
    fit.task.validation = None
    assert fit.run().step == 4, "nothing to validate on is no reason to stop"
    assert Checkpoints(tmp_path / "run" / "checkpoints").best().step == 4


def test_state_is_json_before_there_is_a_best(make_fit: MakeFit, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    fit = make_fit(steps=2, validate_every=1)
    fit.task.validation = None
    fit.run()
    folder = tmp_path / "run" / "checkpoints" / "step_00000002"
    text = (folder / "state.json").read_text()
    assert json.loads(text, parse_constant=refuse)["progress"]["best_value"] is None
    assert make_fit(resume=True).progress == fit.progress


def test_want_of_memory_is_told_with_the_way_out(make_fit: MakeFit) -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):

        class Batches:
            def from_batch(self, batch: int, error: RuntimeError = error) -> Iterator[Any]:
                raise error
                yield

        with pytest.raises(UserError, match=r"out of memory on cpu in step 0; lower data\.labeled_per_batch"):
            make_fit(batches=Batches()).run()


def test_want_of_memory_in_validation_is_told_too(make_fit: MakeFit) -> None:
    def validation(error: RuntimeError) -> Callable[..., dict[str, float]]:
        def fail(*_: object) -> dict[str, float]:
            raise error

        return fail

    fit = make_fit(validate_every=2)
    fit.task.validation = validation(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(UserError, match=r"out of memory on cpu in the validation after step 2; .*--resume"):
        fit.run()
    fit = make_fit(validate_every=2)
    fit.task.validation = validation(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit.run()


def test_a_network_of_which_nothing_is_trained_is_refused(small_grader: Nets) -> None:
    task = MeanTeacher(small_grader().requires_grad_(False), loss=LossConfig(), decay=0.8, ramp_steps=6)
    with pytest.raises(UserError, match="the network has nothing to train"):
        make_optimizer(task, OptimizerConfig(), torch.device("cpu"))


def test_losses_of_a_resumed_window_are_where_the_new_ones_will_be() -> None:
    window = Window()
    window.load({"loss/total": torch.tensor([1.0, 2.0])}, torch.device("meta"))
    assert {value.device.type for value in window.values["loss/total"]} == {"meta"}
    window.load({"loss/total": torch.tensor([1.0, 2.0])}, torch.device("cpu"))
    window.values["loss/total"].append(torch.tensor(6.0, dtype=torch.bfloat16))
    assert window.means() == {"loss/total": 3.0}
    assert window.tensors()["loss/total"].tolist() == [1.0, 2.0, 6.0]


def test_two_half_batches_make_the_gradient_of_a_whole_one(
    small_batch: Any, make_fit: MakeFit, small_grader: Nets, everything: Everything
) -> None:
    """Without normalisation, and for terms that are means over the same number of images in both halves."""

    def halves(batch: Batch) -> list[Batch]:
        parts = []
        for half in (slice(0, 2), slice(2, 4)):
            rows = torch.cat([torch.arange(4)[half], 4 + torch.arange(4)[half]])
            parts.append(
                Batch(
                    batch.student[rows],
                    batch.teacher[rows],
                    batch.grades[half],
                    batch.masks[half],
                    batch.has_mask[half],
                )
            )
        return parts

    class Given:
        per_epoch = 2

        def __init__(self, batches: list[Batch]) -> None:
            self.batches = batches

        def from_batch(self, batch: int) -> Iterator[Batch]:
            yield from self.batches[batch:]

    wholes = [small_batch(4, 4, seed=seed) for seed in (1, 2)]
    sgd = OptimizerConfig(name="sgd", learning_rate=0.1)
    one = make_fit("one", batches=Given(wholes), steps=2, norm=False, optimizer=sgd)
    parts = [part for whole in wholes for part in halves(whole)]
    two = make_fit("two", batches=Given(parts), steps=2, norm=False, optimizer=sgd, accumulation=2)
    one.run()
    two.run()
    ours, theirs = everything(one), everything(two)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


def test_gradient_is_clipped_to_the_norm_asked_for(make_fit: MakeFit) -> None:
    fit = make_fit(steps=1, optimizer=OptimizerConfig(name="sgd", learning_rate=1.0, weight_decay=0.0, clip_norm=1e-3))
    before = [p.detach().clone() for p in fit.task.parameters()]
    fit.run()
    moved = torch.cat([(a - b).flatten() for a, b in zip(fit.task.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3 * 1.9, rel=1e-2)  # Nesterov's first step is 1 + momentum


def test_metrics_are_a_plain_table(make_fit: MakeFit, tmp_path: Path) -> None:
    make_fit(steps=4).run()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "name", "value"]
    names = {row["name"] for row in rows}
    assert {
        "loss/total",
        "loss/grade",
        "loss/attention",
        "loss/probability_consistency",
        "loss/attention_consistency",
        "schedule/lr",
        "schedule/ramp",
        "schedule/teacher_decay",
        "unlabeled/agreement",
        "unlabeled/entropy",
        "system/images_per_s",
        "system/skipped_steps",
        "val/score",
    } <= names


def test_training_that_diverged_is_told_what_helps_training(make_fit: MakeFit) -> None:
    def diverged(networks: object, step: int) -> dict[str, float]:
        raise NotFinite(np.array([3]), 4)

    fit = make_fit()
    fit.task.validation = diverged  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"training has diverged: .* after step 3 .*; lower optimizer\.learning_rate"
    ) as caught:
        fit.run()
    assert "--checkpoint" not in str(caught.value)
    assert "fp32" not in str(caught.value), "it is fp32"


def test_a_term_that_few_images_have_is_no_idle_one(make_fit: MakeFit, small_grader: Nets, said: list[str]) -> None:
    """One batch of an epoch of five has a mask, and windows are of two batches."""

    class Rare(MeanTeacher):
        def losses(self, batch: Batch, step: int) -> StepLosses:
            found = super().losses(batch, step)
            share = 1.0 if step % 5 == 4 else 0.0
            return found._replace(terms={**found.terms, "attention": found.terms["attention"] * share})

    fit = make_fit(steps=12)
    fit.task = Rare(small_grader(), loss=LossConfig(), decay=0.8, ramp_steps=6)
    fit.__post_init__()
    fit.run()
    assert not [line for line in said if "warning" in line]
