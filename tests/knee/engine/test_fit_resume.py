"""The loop, stopped and resumed: as if it had never been interrupted, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from knee.engine.checkpoint import Checkpoints
from knee.engine.config import OptimizerConfig
from knee.engine.fit import Fit
from knee.errors import UserError
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
