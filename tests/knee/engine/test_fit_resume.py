"""The loop, stopped and resumed: as if it had never been interrupted, bit for bit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from knee.engine import guards
from knee.engine.checkpoint import Checkpoints
from knee.engine.config import OptimizerConfig
from knee.engine.fit import Fit
from knee.errors import UserError
from knee.io.termination import Terminated
from knee.task import Batch

MakeFit = Callable[..., Fit]
State = dict[str, torch.Tensor]
Everything = Callable[[Fit], State]
AssertSame = Callable[[State, State], None]
Recorded = Callable[[Path], list[tuple[int, str, float]]]


class StopAt:
    """Batches that ask the process to stop while the given batch is made, as a scheduler would."""

    def __init__(self, batches: Any, batch: int, number: signal.Signals) -> None:
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
    stop: int,
    dropout: float,
    number: signal.Signals,
    make_fit: MakeFit,
    seeded_batches: Any,
    tmp_path: Path,
    everything: Everything,
    assert_same: AssertSame,
    recorded: Recorded,
    said: list[str],
) -> None:
    whole = make_fit("whole", dropout=dropout)
    whole.run()
    first = make_fit("parts", dropout=dropout, batches=StopAt(seeded_batches(), stop, number))
    assert first.run().step == stop + 1
    second = make_fit("parts", dropout=dropout, resume=True)
    torch.rand(1)  # whatever the new process drew before does not matter
    second.restore(Checkpoints(tmp_path / "parts" / "checkpoints").latest()[0])
    second.run()
    if stop < 6:
        assert f"stopped at step {stop + 1} of 7, saved; continue with: dcmt train --resume RUN" in said
        assert second.batches.served[0] == stop + 1
    assert_same(everything(whole), everything(second))
    assert recorded(tmp_path / "whole") == recorded(tmp_path / "parts")
    assert vars(whole.progress) | {"seconds": 0} == vars(second.progress) | {"seconds": 0}


class HangAt(StopAt):
    """Batches of which one never comes, and meanwhile the process is asked to stop."""

    def from_batch(self, batch: int) -> Iterator[Batch]:
        for found in super().from_batch(batch):
            if len(self._batches.served) == self._at + 1:
                time.sleep(30)
            yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is ended at once, and the process is not."""
    monkeypatch.setattr(guards, "_PATIENCE", 0.01)
    monkeypatch.setattr(guards, "end_within", lambda seconds: None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_asked_to_stop_while_a_batch_does_not_come(
    accumulation: int,
    make_fit: MakeFit,
    seeded_batches: Any,
    everything: Everything,
    assert_same: AssertSame,
    said: list[str],
) -> None:
    """What was done so far is saved; within a step of several batches, the last checkpoint stays."""
    whole = make_fit("whole", accumulation=accumulation)
    whole.run()
    hanging = HangAt(seeded_batches(), 4 if accumulation == 1 else 9, signal.SIGTERM)
    first = make_fit("parts", accumulation=accumulation, batches=hanging)
    if accumulation == 1:
        assert first.run().step == 4
        assert "stopped at step 4 of 7, saved; continue with: dcmt train --resume RUN" in said
    else:
        with pytest.raises(Terminated):
            first.run()
    second = make_fit("parts", accumulation=accumulation, resume=True)
    assert second.progress.step == (4 if accumulation == 1 else 3)
    second.run()
    assert_same(everything(whole), everything(second))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("step", [3, 7])
def test_asked_to_stop_in_a_long_validation_which_is_repeated(
    step: int,
    make_fit: MakeFit,
    tmp_path: Path,
    everything: Everything,
    assert_same: AssertSame,
    recorded: Recorded,
    said: list[str],
) -> None:
    whole = make_fit("whole")
    whole.run()
    first = make_fit("parts")
    validate = first.task.validation

    def hangs(networks: Any, at: int) -> Any:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        assert validate is not None
        return validate(networks, at)

    first.task.validation = hangs
    assert first.run().validation_due == 1
    assert first.was_stopped
    assert not first.progress.complete(steps=7, patience=0)
    assert f"stopped at step {step} of 7, saved; continue with: dcmt train --resume RUN" in said
    second = make_fit("parts", resume=True)
    second.run()
    assert_same(everything(whole), everything(second))
    assert recorded(tmp_path / "whole") == recorded(tmp_path / "parts")
    assert vars(whole.progress) | {"seconds": 0} == vars(second.progress) | {"seconds": 0}


def test_killed_run_goes_on_from_its_last_checkpoint_without_doubled_rows(
    make_fit: MakeFit, tmp_path: Path, everything: Everything, assert_same: AssertSame, recorded: Recorded
) -> None:
    whole = make_fit("whole")
    whole.run()

    class Killed(BaseException):
        pass

    first = make_fit("parts")
    step = first.step

    def dies_at_5(batches: Any) -> None:
        if first.progress.step == 5:
            raise Killed
        step(batches)

    first.step = dies_at_5  # type: ignore[method-assign]
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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_resumes(name: Any, make_fit: MakeFit, everything: Everything, assert_same: AssertSame) -> None:
    optimizer = OptimizerConfig(name=name, schedule="onecycle", clip_norm=1.0)
    whole = make_fit("whole", steps=6, optimizer=optimizer)
    whole.run()
    part = make_fit("parts", steps=6, optimizer=optimizer)
    step = part.step

    def stop_at_3(batches: Any) -> None:
        step(batches)
        part._stop = part.progress.step == 3

    part.step = stop_at_3  # type: ignore[method-assign]
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


def test_a_kill_between_checkpoint_and_best_note_loses_no_best(make_fit: MakeFit, tmp_path: Path) -> None:
    make_fit(steps=4, validate_every=2).run()
    folder = tmp_path / "run" / "checkpoints"
    (folder / "best.json").write_text('{"step": 2, "metric": "val/score", "value": -2.0}')
    make_fit(steps=8, validate_every=2, resume=True)
    assert Checkpoints(folder).best().step == 4
