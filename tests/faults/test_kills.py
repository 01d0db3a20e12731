"""kill −9 at random moments, also inside the writing of checkpoints and logs; each run resumed ends as if undisturbed."""

from __future__ import annotations

import collections
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import knee.engine.checkpoint
from dcmt.validation import GraderValidation

from .conftest import Kills, Prepare, Trainee, Undisturbed, assert_same

pytestmark = pytest.mark.faults
KILLS = 32
"""Of the fifty of the bench; the others are in test_kills_elsewhere."""
FIRST = "inside the first checkpoint"
KINDS = (FIRST, "at a random time", "at a random file operation", "inside a checkpoint's file")
KILLS_A_RUN = 5
# Calls that the interpreter reports: a kill at one of them leaves a file opened, half written, not yet moved or removed.
_WRITING = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate")


def kill_at_operation(folder: Path, number: int) -> Prepare:
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


def kill_in_file(number: int, share: float) -> Prepare:
    """Arms the new process to kill itself within its ``number``-th file of tensors, a ``share`` of it written."""

    def arm() -> None:
        save_file = knee.engine.checkpoint.save_file
        seen = 0

        def cut_short(tensors: Mapping[str, Tensor], path: Path) -> None:
            nonlocal seen
            save_file(dict(tensors), path)
            seen += 1
            if seen == number:
                os.truncate(path, round(share * path.stat().st_size))
                os.kill(os.getpid(), signal.SIGKILL)

        knee.engine.checkpoint.save_file = cut_short  # type: ignore[assignment]

    return arm


def kill_before_saving() -> None:
    """Arms the new process to kill itself when the rows of a validation are written, but nothing of its checkpoint."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    knee.engine.checkpoint.Checkpoints.save = die  # type: ignore[method-assign]


def kill_in_first_checkpoint(folder: Path, draw: random.Random) -> Prepare:
    """Before, inside or between the writing of its files, or before it is moved into place."""
    # The folder, five files of tensors synced and summed, state.json opened, synced and moved, the folder synced and moved.
    operation = draw.randint(1, 15)
    file = kill_in_file(draw.randint(1, 5), draw.random())
    return draw.choice([kill_before_saving, file, kill_at_operation(folder / ".writing_", operation)])


def killed_once(trainee: Trainee, name: str, kind: str, undisturbed: Undisturbed, draw: random.Random) -> bool:
    """One start of the run that is meant to be killed; whether it was before it ended."""
    run = trainee.run(name)
    if kind == "at a random time":
        process = trainee.train(name)
        time.sleep(draw.uniform(0, undisturbed.seconds))
        process.kill()
    elif kind == "at a random file operation":
        process = trainee.train(name, prepare=kill_at_operation(run.path, draw.randint(1, 90)))
    elif kind == FIRST:
        process = trainee.train(name, prepare=kill_in_first_checkpoint(run.checkpoints.folder, draw))
    else:
        process = trainee.train(name, prepare=kill_in_file(draw.randint(1, 12), draw.random()))
    killed = trainee.finish(process) == -signal.SIGKILL
    if killed and kind == "inside a checkpoint's file":
        assert list(run.checkpoints.folder.glob(".writing_*/*.safetensors")), "the kill was to leave half a checkpoint"
    if kind == FIRST:
        assert killed
        assert has_logged(trainee, "val_teacher", name)
        assert run.checkpoints.latest() == (None, []), "the kill was to come before the first checkpoint is whole"
    return killed


def test_kills_of_training(
    trainee: Trainee, undisturbed: Undisturbed, kills: Kills, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(1)
    done: collections.Counter[str] = collections.Counter()
    runs = 0
    while done.total() < KILLS:
        runs += 1
        assert runs <= 2 * KILLS, f"runs end before they are killed: {done}"
        name = f"run_{runs}"
        before = done.copy()
        for _ in range(min(KILLS_A_RUN, KILLS - done.total())):
            # Under changing load a run may end before its random time: kinds are balanced by the kills that happened.
            possible = KINDS if trainee.run(name).checkpoints.latest()[0] is None else KINDS[1:]
            kind = min(possible, key=lambda kind: done[kind])
            if not killed_once(trainee, name, kind, undisturbed, draw):
                break
            done[kind] += 1
            kills.tried[kind] += 1
        assert trainee.finish(trainee.train(name)) == 0, trainee.output()
        assert_same(trainee.run(name), undisturbed.outcome)
        assert not list((trainee.run(name).path / "checkpoints").glob(".*")), "leftovers of a killed writer"
        kills.survived.update(done - before)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{done.total()} of {KILLS} kills in {runs} runs ({', '.join(f'{n} {kind}' for kind, n in done.items())}): "
            "each run ended as the undisturbed one, bit for bit, its metrics.csv and TensorBoard with every step once\n"
        )
    assert min(done[kind] for kind in KINDS) >= 6


@pytest.mark.parametrize("operation", [1, 2, 4, 6, 8, 10])
def test_kill_before_the_first_row_of_metrics(operation: int, trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", prepare=kill_at_operation(trainee.run("run").path, operation))
    assert trainee.finish(process) == -signal.SIGKILL
    assert not has_logged(trainee)
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_kill_between_the_best_checkpoint_and_its_note(trainee: Trainee, undisturbed: Undisturbed) -> None:
    def arm() -> None:
        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        knee.engine.checkpoint.Checkpoints.mark_best = die  # type: ignore[method-assign]

    assert trainee.finish(trainee.train("run", prepare=arm)) == -signal.SIGKILL
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_damaged_newest_checkpoint_is_told_and_the_one_before_taken(trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", prepare=kill_in_file(16, 0.5))  # five files a checkpoint: the fourth is begun
    assert trainee.finish(process) == -signal.SIGKILL
    folder = trainee.run("run").checkpoints.folder
    assert sorted(path.name for path in folder.glob("step_*"))[-2:] == ["step_00000004", "step_00000006"]
    os.truncate(folder / "step_00000006" / "teacher.safetensors", 1000)
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert "step_00000006/teacher.safetensors is missing or damaged" in trainee.output()
    assert "using the checkpoint before it" in trainee.output()
    assert "resuming" in trainee.output()
    assert "at step 4 of 10" in trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_where_no_checkpoint_is_whole_the_run_does_not_start_over(trainee: Trainee, undisturbed: Undisturbed) -> None:
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    run = trainee.run("run")
    damaged = list(run.checkpoints.folder.glob("step_*/student.safetensors"))
    kept = {path: path.read_bytes() for path in damaged}
    for path in damaged:
        os.truncate(path, 1000)
    record = (run.path / "metrics.csv").read_bytes()
    assert trainee.finish(trainee.train("run")) == 2
    assert "no checkpoint is valid" in trainee.output()
    assert (run.path / "metrics.csv").read_bytes() == record
    for path, content in kept.items():
        path.write_bytes(content)
    assert_same(run, undisturbed.outcome)


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
    assert "stopped at step 4 of 10, saved; continue with: python train.py --resume" in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_ctrl_c_reaches_the_whole_group_and_the_step_is_still_saved(trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", "--data.workers", "2", prepare=os.setpgrp)
    wait_for(lambda: has_logged(trainee), process)
    os.killpg(process.pid, signal.SIGINT)
    assert trainee.finish(process) == 0, trainee.output()
    assert "saved; continue with" in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 120.0) -> None:
    """Until the condition holds, while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "ended before it was expected to"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def has_logged(trainee: Trainee, what: str = "loss/total", name: str = "run") -> bool:
    """Whether the run of that name has a row of ``what``."""
    metrics = trainee.run(name).path / "metrics.csv"
    return metrics.exists() and what in metrics.read_text()


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_worker_that_dies_ends_the_run_with_a_sentence(trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", "--data.workers", "2")
    wait_for(lambda: has_logged(trainee), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert_told_and_resumed(trainee, process, undisturbed)


def test_worker_that_dies_in_validation_does_so_too(trainee: Trainee, undisturbed: Undisturbed) -> None:
    validate = GraderValidation.__call__

    def arm() -> None:
        def bereaved(self: GraderValidation, networks: Any, step: int) -> dict[str, float]:
            if step == 4:
                os.kill(children(os.getpid())[0], signal.SIGKILL)
                time.sleep(60)  # the signal that tells of it ends this at once
            return validate(self, networks, step)

        GraderValidation.__call__ = bereaved  # type: ignore[method-assign]

    process = trainee.train("run", "--data.workers", "2", prepare=arm)
    assert_told_and_resumed(trainee, process, undisturbed)


def assert_told_and_resumed(trainee: Trainee, process: Any, undisturbed: Undisturbed) -> None:
    assert trainee.finish(process) == 2, trainee.output()
    assert "a process that loads images died" in trainee.output()
    assert "Traceback" not in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_workers_that_outlive_a_killed_run_do_not_hold_its_lock(trainee: Trainee, undisturbed: Undisturbed) -> None:
    process = trainee.train("run", "--data.workers", "2")
    wait_for(lambda: has_logged(trainee), process)
    workers = children(process.pid)
    process.kill()
    assert trainee.finish(process) == -signal.SIGKILL
    assert any(Path(f"/proc/{worker}").exists() for worker in workers), "they look for their parent every few seconds"
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_second_run_in_the_folder_is_refused_while_the_first_lives(trainee: Trainee, undisturbed: Undisturbed) -> None:
    first = trainee.train("run")
    wait_for(lambda: has_logged(trainee), first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = trainee.start("train", "--resume", trainee.run("run").path)
        assert trainee.finish(second) == 2, trainee.output()
        assert "another process is training in" in trainee.output()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert trainee.finish(first) == 0
    assert_same(trainee.run("run"), undisturbed.outcome)
