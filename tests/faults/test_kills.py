"""kill −9 at random moments, also inside the writing of checkpoints and logs; each run resumed ends as if undisturbed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcmt.validation import GraderValidation

from .conftest import Trainee, Undisturbed, assert_same

pytestmark = pytest.mark.faults
KILLS = 50
KILLS_A_RUN = 5
# Calls that the interpreter reports: a kill at one of them leaves a file opened, half written, not yet moved or removed.
_WRITING = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate")


def kill_at_write(folder: Path, number: int) -> Callable[[], None]:
    """Arms the new process to kill itself at its ``number``-th file operation within the folder."""

    def arm() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in _WRITING and str(arguments[0]).startswith(str(folder)):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arm


def killed_once(trainee: Trainee, name: str, undisturbed: Undisturbed, draw: random.Random) -> bool:
    """One start of the run that is meant to be killed; whether it was before it ended."""
    if draw.random() < 0.5:
        process = trainee.train(name, prepare=kill_at_write(trainee.run(name).path, draw.randint(1, 90)))
    else:
        process = trainee.train(name)
        time.sleep(draw.uniform(0, undisturbed.seconds))
        process.kill()
    return trainee.finish(process) == -signal.SIGKILL


def test_fifty_kills(trainee: Trainee, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(1)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        name = f"run_{runs}"
        here = 0
        while here < min(KILLS_A_RUN, KILLS - kills) and killed_once(trainee, name, undisturbed, draw):
            here += 1
        kills += here
        assert trainee.finish(trainee.train(name)) == 0, trainee.output()
        assert_same(trainee.run(name), undisturbed.outcome)
        assert not list((trainee.run(name).path / "checkpoints").glob(".*")), "leftovers of a killed writer"
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kills} of {KILLS} kills in {runs} runs: each run ended as the undisturbed one, bit for bit\n"
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_in_validation(number: signal.Signals, trainee: Trainee, undisturbed: Undisturbed) -> None:
    validate = GraderValidation.__call__

    def arm() -> None:
        def asked(self: GraderValidation, networks: Any, step: int) -> dict[str, float]:
            if step == 4:
                os.kill(os.getpid(), number)
            return validate(self, networks, step)

        GraderValidation.__call__ = asked  # type: ignore[method-assign]

    assert trainee.finish(trainee.train("run", prepare=arm)) == 0, trainee.output()
    assert "stopped at step 4 of 10, saved; go on with: python train.py --resume" in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_ctrl_c_reaches_the_whole_group_and_the_step_is_still_saved(trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", "--data.workers", "2", prepare=os.setpgrp)
    metrics = trainee.run("run").path / "metrics.csv"
    wait_for(lambda: metrics.exists() and "loss/total" in metrics.read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    assert trainee.finish(process) == 0, trainee.output()
    assert "saved; go on with" in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 120.0) -> None:
    """Until the condition holds, while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "ended before it was expected to"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_worker_that_dies_ends_the_run_with_a_sentence(trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", "--data.workers", "2", "--fit.validate_every", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(children.read_text().split()) == 2, process)
    metrics = trainee.run("run").path / "metrics.csv"
    wait_for(lambda: metrics.exists() and "loss/total" in metrics.read_text(), process)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    assert trainee.finish(process) == 2, trainee.output()
    assert "a process that loads images died" in trainee.output()
    assert "Traceback" not in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_second_run_in_the_folder_is_refused_while_the_first_lives(trainee: Trainee, undisturbed: Undisturbed) -> None:
    first = trainee.train("run")
    metrics = trainee.run("run").path / "metrics.csv"
    wait_for(lambda: metrics.exists() and "loss/total" in metrics.read_text(), first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        for arguments in (["--resume", trainee.run("run").path], ["--config", trainee.config, "--force"]):
            more = [] if arguments[0] == "--resume" else ["--runs", trainee.folder, "--name", "run"]
            second = trainee.start("train", *arguments, *more)
            assert trainee.finish(second) == 2, trainee.output()
            assert "another process is training in" in trainee.output()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert trainee.finish(first) == 0
    assert_same(trainee.run("run"), undisturbed.outcome)
