"""One of two training processes is killed: the other ends in time with a message, and one process goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcmt.commands import predict
from dcmt.validation import GraderValidation
from knee.engine.fit import Fit
from knee.nn import processes
from tests.conftest import ROOT
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


def in_step(number: int, happens: Callable[[], None] = die) -> Prepare:
    def arm() -> None:
        before = processes.average_gradients
        seen = 0

        def average(parameters: object) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                happens()
            before(parameters)  # type: ignore[arg-type]

        processes.average_gradients = average  # type: ignore[assignment]

    return arm


def in_validation() -> None:
    """When the other process has begun to compare the networks."""
    Fit.validate = lambda _: die()  # type: ignore[method-assign]


def in_predictions() -> None:
    """While both predict their parts of the validation images."""
    GraderValidation._predict = lambda *_: die()  # type: ignore[method-assign]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "arm",
    [lambda: in_step(3), lambda: in_validation, lambda: in_predictions, lambda: kill_in_file(7, 0.5)],
    ids=["in a step", "before a validation", "in a validation", "in a checkpoint"],
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
    assert "another process of this command ended" in said
    assert "Traceback" not in said
    assert trainee.finish(trainee.train("two")) == 0, trainee.output()
    checkpoint, damaged = trainee.run("two").checkpoints.latest()
    assert checkpoint is not None
    assert (checkpoint.step, damaged) == (10, [])
    kills.survived[LOST] += 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_asked_of_either_process_is_saved_by_both(trainee: Trainee, rank: int) -> None:
    port, started, outputs = free_port(), [], list[Path]()
    for number in (0, 1):
        stop = in_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        prepare = joins(number, port, stop if number == rank else None)
        options = ["--config", trainee.config, "--runs", trainee.folder, "--name", "two"]
        started.append(trainee.start("train", *options, prepare=prepare))
        outputs.append(trainee.last_output)
    codes = [trainee.finish(process, within=WITHIN) for process in started]
    assert codes == [0, 0], [output.read_text(encoding="utf-8") for output in outputs]
    assert "stopped at step 3 of 10, saved; continue with" in outputs[0].read_text(encoding="utf-8")
    checkpoint, damaged = trainee.run("two").checkpoints.latest()
    assert checkpoint is not None
    assert (checkpoint.step, damaged) == (3, [])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_process_of_a_prediction_ends(
    trainee: Trainee, kills: Kills, rank: int, phantom: Path, tmp_path: Path
) -> None:
    """Killed in its second chunk: no table is left that looks complete."""
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    kills.tried[LOST] += 1

    def in_second_chunk() -> None:
        grade, seen = predict.grade_images, []
        predict._CHUNK = 5

        def graded(*arguments: Any) -> Any:
            seen.append(1)
            return grade(*arguments) if len(seen) < 2 else die()

        predict.grade_images = graded

    def small_chunks() -> None:
        predict._CHUNK = 5

    port, out = free_port(), tmp_path / "out"
    started, outputs = [], list[Path]()
    for number in (0, 1):
        prepare = joins(number, port, in_second_chunk if number == rank else small_chunks)
        arguments = ["predict", trainee.run("run").path, phantom.parent / "images", "--out", out]
        started.append(trainee.start(*arguments, prepare=prepare))
        outputs.append(trainee.last_output)
    codes = [trainee.finish(process, within=WITHIN) for process in started]
    said = outputs[1 - rank].read_text(encoding="utf-8")
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 2), said
    assert "another process of this command ended" in said
    assert not (out / "predictions.csv").exists()
    kills.survived[LOST] += 1


def test_two_launches_on_loopback_are_two_nodes(
    trainee: Trainee, phantom: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-id",
        "two",
    ]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "-m", "dcmt"]
    predict_all = ["predict", str(trainee.run("run").path), str(phantom.parent / "images"), "--out"]
    nodes = [
        subprocess.Popen(
            [*launch, *predict_all, str(tmp_path / "two")], env=command_environment, cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert trainee.finish(trainee.start(*predict_all, tmp_path / "one")) == 0, trainee.output()
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
