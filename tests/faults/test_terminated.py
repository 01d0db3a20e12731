"""SIGTERM ends every command within ten seconds wherever it waits, and a run that was in the middle of something resumes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcmt.validation import GraderValidation
from knee.data.datasets import TwoStreams
from knee.engine.run import RunFolder
from knee.io.folder_lock import folder_lock
from knee.io.termination import EXIT_CODE
from tests.hostile import copied, spoil

from .conftest import Prepare, Trainee, Undisturbed, assert_same
from .test_kills import has_logged, wait_for

pytestmark = pytest.mark.faults
LIMIT = 10.0


def hangs(name: str, reached: Path) -> Prepare:
    """Arms the new process: the function of that dotted name never returns."""

    def arm() -> None:
        def hang(*_: Any, **__: Any) -> None:
            reached.touch()
            time.sleep(120)

        pytest.MonkeyPatch().setattr(name, hang)

    return arm


def assert_ends(trainee: Trainee, process: Any, reached: Callable[[], bool]) -> int:
    """SIGTERM once the command waits; returns its exit code."""
    wait_for(reached, process)
    started = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    while process.is_alive() and time.monotonic() - started < LIMIT:  # join would wait for its workers, too
        time.sleep(0.05)
    assert process.exitcode is not None, f"still running after {LIMIT} s"
    return int(process.exitcode)


@pytest.mark.parametrize(
    ("arguments", "waits_in"),
    [
        ("manifest {images} --out {out}", "knee.intake.scan._walk"),
        ("check {manifest} --grade-set cartilage", "knee.data.check.read_image"),
        ("crop {images} --pattern file --out {out}", "knee.intake.crop.write.read_image"),
        ("evaluate {run}", "knee.data.cache.read_image"),
        ("evaluate {run}", "dcmt.trained.loaded.predict"),
        ("predict {run} {images} --out {out}", "dcmt.onnx.reader.read_image"),
        ("review export {run} --cases 2 --out {out}", "dcmt.commands.review.export.review_cases"),
    ],
)
def test_commands(
    arguments: str, waits_in: str, trainee: Trainee, trained_run: RunFolder, phantom: Path, tmp_path: Path
) -> None:
    run = copied(trained_run.path, tmp_path / "tiny")
    if waits_in == "knee.data.cache.read_image":
        (tmp_path / "cache" / "48px-00000000").mkdir(parents=True)  # another one: that of the run has to be made
        private = run / "local" / "paths.yaml"
        private.write_text(private.read_text() + f"data.cache: {tmp_path / 'cache'}\n")
        spoil(run / "config.yaml", ("data", "cache"), '"(in local/paths.yaml)"')
    names = {"run": run, "images": phantom.parent / "images", "manifest": phantom, "out": tmp_path / "out"}
    reached = tmp_path / "reached"
    process = trainee.start(*arguments.format(**names).split(), prepare=hangs(waits_in, reached))
    assert assert_ends(trainee, process, reached.exists) == EXIT_CODE
    assert not list((tmp_path / "out").rglob("*.part"))


def test_import_that_waits_for_another(trainee: Trainee, trained_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(copied(trained_run.path, tmp_path / "tiny"))
    assert trainee.finish(trainee.start("review", "export", run.path, "--cases", "2")) == 0, trainee.output()
    (tmp_path / "verdicts.json").write_text("{}")
    with folder_lock(run.local):
        process = trainee.start("review", "import", run.path, tmp_path / "verdicts.json")
        begun = time.monotonic() + 3
        assert assert_ends(trainee, process, lambda: time.monotonic() > begun) == EXIT_CODE
    assert "terminated" in trainee.output()
    assert not run.verdicts.exists()


def test_training_whose_workers_give_no_batch(trainee: Trainee, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """What was done is saved, although the workers never answer again."""
    flag = tmp_path / "hang"

    def arm() -> None:
        views = TwoStreams.__getitem__

        def hang(self: TwoStreams, index: Any) -> Any:
            if flag.exists():
                time.sleep(120)
            return views(self, index)

        TwoStreams.__getitem__ = hang  # type: ignore[method-assign]

    process = trainee.train("run", "--data.workers", "2", prepare=arm)
    wait_for(lambda: has_logged(trainee), process)
    flag.touch()
    settled = time.monotonic() + 3
    assert assert_ends(trainee, process, lambda: time.monotonic() > settled) in (0, EXIT_CODE)
    flag.unlink()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_training_in_a_validation_that_takes_long(trainee: Trainee, undisturbed: Undisturbed, tmp_path: Path) -> None:
    reached = tmp_path / "reached"

    def arm() -> None:
        validate = GraderValidation.__call__

        def slow(self: GraderValidation, networks: Any, step: int) -> dict[str, float]:
            if step == 4:
                reached.touch()
                time.sleep(120)
            return validate(self, networks, step)

        GraderValidation.__call__ = slow  # type: ignore[method-assign]

    process = trainee.train("run", prepare=arm)
    assert assert_ends(trainee, process, reached.exists) == 0
    assert "stopped at step 4 of 10, saved" in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)
