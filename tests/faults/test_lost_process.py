"""One of two training processes is killed: the other ends in time with a message, and one process goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from knee.engine.fit import Fit
from knee.nn import processes
from tests.knee.nn.test_processes import free_port

from .conftest import Kills, Prepare, Trainee
from .test_kills import kill_in_file

pytestmark = pytest.mark.faults
LOST = "of one of two processes"
WITHIN = 60.0


def joins(rank: int, port: int, then: Prepare | None = None) -> Prepare:
    def prepare() -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
        if then is not None:
            then()

    return prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(number: int) -> Prepare:
    def arm() -> None:
        before = processes.average_gradients
        seen = 0

        def average(parameters: object) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                die()
            before(parameters)  # type: ignore[arg-type]

        processes.average_gradients = average  # type: ignore[assignment]

    return arm


def in_validation() -> None:
    """Of the process that validates, or of one that waits for it."""
    Fit.validate = lambda _: die()  # type: ignore[method-assign]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "arm",
    [lambda: in_step(3), lambda: in_validation, lambda: kill_in_file(7, 0.5)],
    ids=["in a step", "in a validation", "in a checkpoint"],
)
def test_the_other_process_ends_and_the_run_goes_on(
    trainee: Trainee, kills: Kills, rank: int, arm: Callable[[], Prepare], request: pytest.FixtureRequest
) -> None:
    if rank == 1 and "checkpoint" in request.node.name:
        pytest.skip("only the first process writes checkpoints")
    kills.tried[LOST] += 1
    port = free_port()
    started, outputs = [], list[Path]()
    for number in (0, 1):
        prepare = joins(number, port, arm() if number == rank else None)
        options = ["--config", trainee.config, "--runs", trainee.folder, "--name", "two"]
        started.append(trainee.start("train", *options, prepare=prepare))
        outputs.append(trainee.last_output)
    codes = [trainee.finish(process, within=WITHIN) for process in started]
    said = outputs[1 - rank].read_text(encoding="utf-8")
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 2, said
    assert "another process of this training ended" in said
    assert "Traceback" not in said
    assert trainee.finish(trainee.train("two")) == 0, trainee.output()
    checkpoint, damaged = trainee.run("two").checkpoints.latest()
    assert checkpoint is not None
    assert (checkpoint.step, damaged) == (10, [])
    kills.survived[LOST] += 1
