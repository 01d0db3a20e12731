"""The loop: exact resuming, steps that are not finite, warnings, early stopping, accumulation, signals."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcmt.checkpoint import Checkpoints
from dcmt.config import FitConfig, OptimizerConfig
from dcmt.fit import Fit
from dcmt.task import LossWeights, MeanTeacher
from dcmt.tracking import Tracker, read_metrics
from knee.errors import UserError
from knee.task import Batch, StepLosses

Nets = Callable[..., nn.Module]
MakeFit = Callable[..., Fit]


class SeededBatches:
    """Batch k of the run is a function of k; ``spoiled`` ones hold NaN."""

    def __init__(self, make: Callable[..., Batch], spoiled: frozenset[int] = frozenset()) -> None:
        self.per_epoch = 5
        self.make = make
        self.spoiled = spoiled
        self.served: list[int] = []

    def from_batch(self, batch: int) -> Iterator[Batch]:
        while True:
            found = self.make(seed=batch)
            if batch in self.spoiled:
                found.student[0, 0, 0, 0] = float("nan")
            self.served.append(batch)
            yield found
            batch += 1


@pytest.fixture
def make_fit(tmp_path: Path, small_grader: Nets, small_batch: Callable[..., Batch]) -> Iterator[MakeFit]:
    """A run of the loop in ``tmp_path / folder``; ``resume=True`` goes on from the last checkpoint there."""
    trackers: list[Tracker] = []

    def build(
        folder: str = "run",
        *,
        steps: int = 7,
        resume: bool = False,
        spoiled: frozenset[int] = frozenset(),
        dropout: float = 0.0,
        norm: bool = True,
        said: list[str] | None = None,
        optimizer: OptimizerConfig | None = None,
        batches: Any = None,
        **config: Any,
    ) -> Fit:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        torch.manual_seed(0)
        # channels_last, as by default: what lies in another order in memory must come back in that order.
        student = small_grader(seed=2, dropout=dropout, norm=norm).to(memory_format=torch.channels_last)
        task = MeanTeacher(student, weights=LossWeights(), decay=0.8, ramp_steps=6, best_metric="val/score")
        task.validation = lambda networks, step: {"val/score": float(-abs(step - 4)), "val/other": step / 7}
        checkpoints = Checkpoints(path / "checkpoints")
        checkpoint = checkpoints.latest()[0] if resume else None
        fit = Fit(
            task=task,
            batches=batches or SeededBatches(small_batch, spoiled),
            config=FitConfig(**{"log_every": 2, "validate_every": 3, **config}),
            optimizer_config=optimizer or OptimizerConfig(),
            device=torch.device("cpu"),
            precision="fp32",
            tracker=Tracker(path, tensorboard=False, first_step=checkpoint.step if checkpoint else 0),
            checkpoints=checkpoints,
            steps=steps,
            say=(said if said is not None else []).append,
            state={"manifest_sha256": "m", "split_sha256": "s"},
            resume_command="dcmt train --resume RUN",
        )
        trackers.append(fit.tracker)
        if checkpoint is not None:
            fit.restore(checkpoint)
        return fit

    yield build
    for tracker in trackers:
        tracker.close()


def everything(fit: Fit) -> dict[str, torch.Tensor]:
    """All weights, buffers and optimiser state, by name."""
    found = {
        f"{name}.{key}": value.clone()
        for name, network in fit.task.networks.items()
        for key, value in network.state_dict().items()
    }
    for number, entry in fit.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{key}": torch.as_tensor(value).clone() for key, value in entry.items()}
    return found


def assert_same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def recorded(path: Path) -> list[tuple[int, str, float]]:
    """Rows of metrics.csv, without those that depend on the clock."""
    return [
        row for row in read_metrics(path / "metrics.csv") if row[1] not in ("system/images_per_s", "system/memory_gib")
    ]


class StopAt:
    """Batches that ask the process to stop while the given batch is made, as a scheduler would."""

    def __init__(self, batches: SeededBatches, batch: int, number: signal.Signals) -> None:
        self.per_epoch = batches.per_epoch
        self._batches = batches
        self._at = batch
        self._number = number

    def from_batch(self, batch: int) -> Iterator[Batch]:
        for number, found in enumerate(self._batches.from_batch(batch), start=batch):
            if number == self._at:
                os.kill(os.getpid(), self._number)
            yield found


@pytest.mark.parametrize("stop", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_equals_uninterrupted(
    stop: int, dropout: float, number: signal.Signals, make_fit: MakeFit, small_batch: Any, tmp_path: Path
) -> None:
    whole = make_fit("whole", dropout=dropout)
    whole.run()
    said: list[str] = []
    first = make_fit("parts", dropout=dropout, said=said, batches=StopAt(SeededBatches(small_batch), stop, number))
    assert first.run().step == stop + 1
    second = make_fit("parts", dropout=dropout, resume=True)
    torch.rand(1)  # whatever the new process drew before does not matter
    second.restore(Checkpoints(tmp_path / "parts" / "checkpoints").latest()[0])
    second.run()
    if stop < 6:
        assert f"stopped at step {stop + 1} of 7, saved; go on with: dcmt train --resume RUN" in said[-1]
        assert second.batches.served[0] == stop + 1
    assert_same(everything(whole), everything(second))
    assert recorded(tmp_path / "whole") == recorded(tmp_path / "parts")
    assert vars(whole.progress) | {"seconds": 0} == vars(second.progress) | {"seconds": 0}


def test_killed_run_goes_on_from_its_last_checkpoint_without_doubled_rows(make_fit: MakeFit, tmp_path: Path) -> None:
    whole = make_fit("whole")
    whole.run()

    class Killed(BaseException):
        pass

    first = make_fit("parts", said=[])
    step = first._step

    def dies_at_5(batches: Any) -> None:
        if first.progress.step == 5:
            raise Killed
        step(batches)

    first._step = dies_at_5  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.run()
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("5,loss/tot")  # a row cut short
    second = make_fit("parts", resume=True)
    assert second.progress.step == 3
    second.run()
    assert_same(everything(whole), everything(second))
    assert recorded(tmp_path / "whole") == recorded(tmp_path / "parts")


def test_signal_handlers_are_put_back(make_fit: MakeFit) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    make_fit().run()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("accumulation", [1, 2])
def test_step_that_is_not_finite_is_skipped_and_leaves_no_trace(
    accumulation: int, make_fit: MakeFit, tmp_path: Path
) -> None:
    fit = make_fit(spoiled=frozenset({2}), steps=4, accumulation=accumulation, log_every=1, validate_every=9)
    states: list[dict[str, torch.Tensor]] = []
    guarded = fit._guarded_step

    def watched(batches: Any) -> None:
        guarded(batches)
        states.append(everything(fit))

    fit._guarded_step = watched  # type: ignore[method-assign]
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


def test_terms_that_teach_nothing_are_told_once(make_fit: MakeFit, small_grader: Nets) -> None:
    said: list[str] = []
    fit = make_fit(said=said, steps=8)
    fit.task = Idle(small_grader(), weights=LossWeights(), decay=0.8, ramp_steps=6)
    fit.__post_init__()
    fit.run()
    warned = [line for line in said if line.startswith("warning")]
    assert len(warned) == 2
    assert any("loss/probability_consistency has a weight above 0" in line for line in warned)
    assert any("loss/attention_consistency" in line for line in warned)


def test_no_warning_where_every_term_teaches(make_fit: MakeFit) -> None:
    said: list[str] = []
    make_fit(said=said).run()
    assert not [line for line in said if "warning" in line]


def test_early_stopping_and_the_best_checkpoint(make_fit: MakeFit, tmp_path: Path) -> None:
    said: list[str] = []
    fit = make_fit(steps=40, validate_every=2, patience=2, said=said)  # the score is best at step 4
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


def test_a_kill_between_checkpoint_and_best_note_loses_no_best(make_fit: MakeFit, tmp_path: Path) -> None:
    make_fit(steps=4, validate_every=2).run()
    folder = tmp_path / "run" / "checkpoints"
    (folder / "best.json").write_text('{"step": 2, "metric": "val/score", "value": -2.0}')
    make_fit(steps=8, validate_every=2, resume=True)
    assert Checkpoints(folder).best().step == 4


def test_without_validation_data_the_last_checkpoint_is_the_best(make_fit: MakeFit, tmp_path: Path) -> None:
    fit = make_fit(steps=4)
    fit.task.validation = None
    fit.run()
    assert Checkpoints(tmp_path / "run" / "checkpoints").best().step == 4


def test_two_half_batches_make_the_gradient_of_a_whole_one(
    small_batch: Any, make_fit: MakeFit, small_grader: Nets
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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_resumes(name: Any, make_fit: MakeFit) -> None:
    optimizer = OptimizerConfig(name=name, schedule="onecycle", clip_norm=1.0)
    whole = make_fit("whole", steps=6, optimizer=optimizer)
    whole.run()
    part = make_fit("parts", steps=6, optimizer=optimizer)
    guarded = part._guarded_step

    def stop_at_3(batches: Any) -> None:
        guarded(batches)
        part._stop = part.progress.step == 3

    part._guarded_step = stop_at_3  # type: ignore[method-assign]
    part.run()
    second = make_fit("parts", steps=6, optimizer=optimizer, resume=True)
    second.run()
    assert_same(everything(whole), everything(second))


def test_resuming_with_other_data_is_refused_by_name(make_fit: MakeFit, tmp_path: Path) -> None:
    make_fit(steps=3).run()
    fit = make_fit(steps=3)
    fit.state = {"manifest_sha256": "other", "split_sha256": "s"}
    with pytest.raises(UserError, match="trained on other data: manifest changed since"):
        fit.restore(Checkpoints(tmp_path / "run" / "checkpoints").latest()[0])


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
