"""One of two training processes is killed: the other ends in time with a message, and one process goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from dcmt.commands import predict
from dcmt.validation import GraderValidation
from knee.engine.fit import Fit
from knee.engine.tracking import read_metrics
from knee.nn import processes
from tests.conftest import ROOT
from tests.knee.nn.test_processes import free_port

from .conftest import Kills, Outcome, Prepare, Trainee, assert_same, outcome
from .test_kills import kill_in_file

pytestmark = pytest.mark.faults
LOST = "of one of two processes"
WITHIN = 60.0
KILLS = int(os.environ.get("LOST_PROCESSES", "2"))
"""At each moment."""


def joins(rank: int, port: int, then: Prepare | None = None) -> Prepare:
    def prepare() -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
        if then is not None:
            then()

    return prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, happens: Callable[[], None] = die) -> Prepare:
    """Arms a process so that it is killed, say, at the ``number``-th call of a function."""

    def arm() -> None:
        before, seen = getattr(owner, name), 0

        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                happens()
            return before(*arguments, **options)

        setattr(owner, name, called)

    return arm


def in_step(number: int, happens: Callable[[], None] = die) -> Prepare:
    return at_call(processes, "average_gradients", number, happens)


CHECKPOINT = "in a checkpoint"
MOMENTS: dict[str, Callable[[int], Prepare]] = {
    "in a step": lambda number: in_step(1 + (number + 2) % 10),
    # The other process has begun to compare the networks.
    "before a validation": lambda number: at_call(Fit, "validate", 1 + number % 5),
    # Both predict their parts of the validation images.
    "in a validation": lambda number: at_call(GraderValidation, "_predict", 1 + number % 5),
    CHECKPOINT: lambda number: kill_in_file(7 + number, 0.5),
}
"""By a number from 0, so that kills are at different steps."""


def start_two(
    trainee: Trainee, *arguments: object, prepare: Sequence[Prepare | None] = (None, None)
) -> list[tuple[BaseProcess, Path]]:
    """Two processes of one command, and where each prints."""
    port, started = free_port(), []
    for rank in (0, 1):
        process = trainee.start(*arguments, prepare=joins(rank, port, prepare[rank]))
        started.append((process, trainee.last_output))
    return started


def of_new_run(trainee: Trainee) -> list[object]:
    """Arguments of ``dcmt``, for a run whose resumption is exact to the bit.

    Without dropout, whose random numbers are each process's own, and with losses logged before each checkpoint, which holds
    those of the first process.
    """
    options = ["--model.dropout", "0", "--fit.log_every", "1"]
    return ["train", "--config", trainee.config, "--runs", trainee.folder, "--name", "two", *options]


@pytest.fixture(scope="module")
def undisturbed_two(fault_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """How two processes end when nothing happens."""
    trainee = Trainee(tmp_path_factory.mktemp("two"), fault_config)
    for process, output in start_two(trainee, *of_new_run(trainee)):
        assert trainee.finish(process) == 0, output.read_text(encoding="utf-8")
    return outcome(trainee.run("two"))


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", range(KILLS))
def test_the_other_process_ends_and_the_run_goes_on(
    trainee: Trainee, kills: Kills, undisturbed_two: Outcome, moment: str, number: int
) -> None:
    kills.tried[LOST] += 1
    rank = 0 if moment == CHECKPOINT else number % 2  # only the first process writes checkpoints
    arm = MOMENTS[moment](number)
    started = start_two(trainee, *of_new_run(trainee), prepare=(arm, None) if rank == 0 else (None, arm))
    assert trainee.finish(started[rank][0]) == -signal.SIGKILL
    other, output = started[1 - rank]
    code, said = trainee.finish(other, within=WITHIN), output.read_text(encoding="utf-8")
    assert code == 2, said
    assert "another process of this command ended" in said
    assert "Traceback" not in said
    for process, output in start_two(trainee, "train", "--resume", trainee.run("two").path):
        assert trainee.finish(process) == 0, output.read_text(encoding="utf-8")
    assert_same(trainee.run("two"), undisturbed_two)
    kills.survived[LOST] += 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_asked_of_either_process_is_saved_by_both(trainee: Trainee, rank: int) -> None:
    stop = in_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    started = start_two(trainee, *of_new_run(trainee), prepare=(stop, None) if rank == 0 else (None, stop))
    codes = [trainee.finish(process, within=WITHIN) for process, _ in started]
    assert codes == [0, 0], [output.read_text(encoding="utf-8") for _, output in started]
    assert "stopped at step 3 of 10, saved; continue with" in started[0][1].read_text(encoding="utf-8")
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

    out = tmp_path / "out"
    arguments = ["predict", trainee.run("run").path, phantom.parent / "images", "--out", out]
    prepare = [in_second_chunk if number == rank else small_chunks for number in (0, 1)]
    started = start_two(trainee, *arguments, prepare=prepare)
    codes = [trainee.finish(process, within=WITHIN) for process, _ in started]
    said = started[1 - rank][1].read_text(encoding="utf-8")
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 2), said
    assert "another process of this command ended" in said
    assert not (out / "predictions.csv").exists()
    kills.survived[LOST] += 1


def on_two_nodes(arguments: Sequence[object], environment: dict[str, str]) -> None:
    """One ``torchrun`` a node, each with one process; both nodes are this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "-m", "dcmt"]
    command = [*launch, *map(str, arguments)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, env=environment, cwd=ROOT, **streams) for _ in range(2)]
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed


def test_two_launches_on_loopback_grade_as_one_process(
    trainee: Trainee, phantom: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    predict_all = ["predict", trainee.run("run").path, phantom.parent / "images", "--out"]
    on_two_nodes([*predict_all, tmp_path / "two"], command_environment)
    assert trainee.finish(trainee.start(*predict_all, tmp_path / "one")) == 0, trainee.output()
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]


def test_two_launches_on_loopback_train_as_one_process(trainee: Trainee, command_environment: dict[str, str]) -> None:
    """Of a network and options that do not enlarge rounding, as in ``tests/dcmt/test_several_processes.py``."""
    train = ["train", "--config", trainee.config, "--runs", trainee.folder, "--model.backbone", "convnext_atto"]
    train += ["--model.dropout", "0", "--attention.sharpness", "4", "--optimizer.name", "sgd"]
    train += ["--optimizer.learning_rate", "0.01", "--fit.log_every", "1", "--name"]
    on_two_nodes([*train, "two"], command_environment)
    assert trainee.finish(trainee.start(*train, "one")) == 0, trainee.output()
    one, two = (
        {(step, what): value for step, what, value in read_metrics(trainee.run(name).path / "metrics.csv")}
        for name in ("one", "two")
    )
    losses = [key for key in one if key[1].startswith("loss/")]
    assert one.keys() == two.keys() and len({step for step, _ in losses}) == 10
    assert max(abs(one[key] - two[key]) for key in losses) < 1e-5
