"""A disk that fills up while a run writes, and data that change or vanish under it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from knee.engine.fit import Fit
from knee.engine.run import RunFolder
from knee.engine.tracking import read_metrics

from .conftest import Outcome, Prepare, Trainee, Undisturbed, assert_same, outcome
from .test_kills import has_logged, wait_for

pytestmark = pytest.mark.faults
Disk = Callable[[str], Path]


def fill(folder: Path) -> Path:
    """Take all the space there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 14))
        except OSError:
            return path


def test_disk_full_in_a_checkpoint(trainee: Trainee, undisturbed: Undisturbed, small_disk: Disk) -> None:
    trainee.folder = small_disk("14m")  # two checkpoints of 5 MB, not three
    assert trainee.finish(trainee.train("run")) == 2, trainee.output()
    assert "cannot be written" in trainee.output()
    assert "No space left" in trainee.output()
    assert "Traceback" not in trainee.output()
    found, damaged = trainee.run("run").checkpoints.latest()
    assert damaged == []
    assert found is not None
    small_disk("64m")
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


def test_disk_full_in_the_first_checkpoint(trainee: Trainee, undisturbed: Undisturbed, small_disk: Disk) -> None:
    trainee.folder = small_disk("3m")  # not one checkpoint
    for _ in range(2):
        assert trainee.finish(trainee.train("run")) == 2, trainee.output()
        assert "it is the first one: fix this, then --resume starts from step 0" in trainee.output()
        assert "Traceback" not in trainee.output()
        assert has_logged(trainee, "val_teacher")
    small_disk("64m")
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert "no checkpoint yet: starting from step 0" in trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


@pytest.mark.parametrize("tensorboard", ["false", "true"])
def test_disk_full_in_the_log(tensorboard: str, trainee: Trainee, undisturbed: Undisturbed, small_disk: Disk) -> None:
    disk = trainee.folder = small_disk("64m")
    process = trainee.train("run", "--report.tensorboard", tensorboard)
    wait_for(lambda: has_logged(trainee, "val_teacher"), process)
    filler = fill(disk)
    code = trainee.finish(process)
    filler.unlink()
    assert code == 2, trainee.output()
    assert "No space left" in trainee.output()
    assert "Traceback" not in trainee.output()
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    same = assert_same if tensorboard == "true" else assert_same_without_board
    same(trainee.run("run"), undisturbed.outcome)


def assert_same_without_board(run: RunFolder, wanted: Outcome) -> None:
    assert_same(run, replace(wanted, board={}))


def left_over(folder: Path) -> set[str]:
    """Files that are neither whole nor gone."""
    return {path.name for path in folder.rglob(".*") if path.name != ".case_salt"}


@pytest.mark.parametrize("room", [0, 1 << 16])
@pytest.mark.parametrize("command", ["html", "png", "nifti", "dicom", "attention", "predict"])
def test_disk_full_in_an_export(
    command: str, room: int, trainee: Trainee, small_disk: Disk, trained_run: RunFolder, phantom: Path
) -> None:
    """Nothing half-written stands under a final name, what was there before stays, and with room it goes through."""
    disk = small_disk("64m")
    run = RunFolder(Path(shutil.copytree(trained_run.path, disk / "run")))
    key = run.local / "review_key.csv"
    assert trainee.finish(trainee.start("review", "export", run.path, "--cases", "1", "--out", disk / "one")) == 0
    before = key.read_bytes()
    arguments = {
        "attention": ["attention", run.path, "--out", disk / "out", "--force"],
        "predict": ["predict", run.path, phantom.parent / "images", "--out", disk / "out", "--force"],
    }.get(command, ["review", "export", run.path, "--format", command, "--out", disk / "out", "--force"])
    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - room)
    code = trainee.finish(trainee.start(*arguments))
    printed = trainee.output()
    filler.unlink()
    assert code == 2, printed
    assert "No space left" in printed
    assert "Traceback" not in printed
    assert key.read_bytes() == before
    assert left_over(disk) == set()
    assert trainee.finish(trainee.start(*arguments)) == 0, trainee.output()
    assert any((disk / "out").rglob("*.*"))


def test_disk_full_in_an_evaluation(trainee: Trainee, small_disk: Disk) -> None:
    disk = trainee.folder = small_disk("64m")
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    run = trainee.run("run")
    assert trainee.finish(trainee.start("evaluate", run.path)) == 0, trainee.output()
    before = run.metrics("test").read_text()
    filler = fill(disk)
    process = trainee.start("evaluate", run.path)
    code = trainee.finish(process)
    filler.unlink()
    assert code == 2
    assert run.metrics("test").read_text() == before
    assert trainee.finish(trainee.start("verify", run.path)) == 0, trainee.output()


@pytest.fixture
def own_data(phantom: Path, trainee: Trainee) -> Path:
    """A copy of the phantom that may be spoiled, its cache not yet built."""
    folder = trainee.folder / "data"
    shutil.copytree(phantom.parent, folder, ignore=shutil.ignore_patterns("cache"))
    return folder


def options(data: Path) -> list[str]:
    return ["--data.manifest", str(data / "manifest.csv"), "--data.split", str(data / "split.csv")]


@pytest.mark.parametrize("fault", ["changed", "gone"])
def test_data_that_change_under_a_run_do_not_reach_it_and_are_refused_after(
    fault: str, trainee: Trainee, undisturbed: Undisturbed, own_data: Path
) -> None:
    """Images are decoded once, before training; a resumed run would see the change, and says so by name."""
    process = trainee.train("run", *options(own_data))
    wait_for(lambda: has_logged(trainee), process)
    victim = own_data / "images" / "P0001_00.png"
    kept = victim.read_bytes()
    if fault == "gone":
        victim.unlink()
    else:
        shutil.copyfile(own_data / "images" / "P0001_01.png", victim)
    assert trainee.finish(process) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)
    assert trainee.finish(trainee.train("run")) == 2, trainee.output()
    assert ("P0001_00.png" if fault == "gone" else "pixels changed since") in trainee.output()
    victim.write_bytes(kept)
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()


@pytest.mark.parametrize("name", ["manifest.csv", "split.csv"])
def test_tables_that_changed_are_refused_by_name(name: str, trainee: Trainee, own_data: Path) -> None:
    assert trainee.finish(trainee.train("run", *options(own_data))) == 0, trainee.output()
    with (own_data / name).open("a") as file:
        file.write("\n")
    assert trainee.finish(trainee.train("run")) == 2, trainee.output()
    assert f"{name.removesuffix('.csv')} changed since" in trainee.output()


def test_cache_that_is_damaged_is_built_anew(trainee: Trainee, undisturbed: Undisturbed, own_data: Path) -> None:
    assert trainee.finish(trainee.train("first", *options(own_data))) == 0, trainee.output()
    for path in (own_data / "cache").glob("*/images.npy"):
        path.write_bytes(path.read_bytes()[:1000])
    assert trainee.finish(trainee.train("run", *options(own_data))) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_with_a_value_that_is_no_number_is_named_and_can_be_left_out(
    value: float, trainee: Trainee, own_data: Path
) -> None:
    table = pd.read_csv(own_data / "manifest.csv", dtype=str, keep_default_na=False)
    split = pd.read_csv(own_data / "split.csv", dtype=str, keep_default_na=False)
    train = set(split["image"][split["split"] == "train"])
    line, old = next((number + 2, name) for number, name in enumerate(table["image"]) if name in train)
    spoiled = np.ones((48, 48), np.float32)
    spoiled[3, 4] = value
    np.save(own_data / "images" / "spoiled.npy", spoiled)
    for frame, name in ((table, "manifest.csv"), (split, "split.csv")):
        frame["image"] = frame["image"].replace(old, "images/spoiled.npy")
        frame.to_csv(own_data / name, index=False)
    assert trainee.finish(trainee.train("run", *options(own_data))) == 2, trainee.output()
    assert f"line {line}" in trainee.output()
    assert "spoiled.npy" in trainee.output()
    assert "Traceback" not in trainee.output()
    assert trainee.finish(trainee.train("other", *options(own_data), "--skip-bad")) == 0, trainee.output()
    assert "47 images" in trainee.output()
    assert "spoiled.npy" in (trainee.run("other").local / "rejected.csv").read_text()


def spoil_gradients(first: int, last: int, value: float) -> Prepare:
    """Arms the new process: the gradients of steps ``first`` to ``last`` have one value that is no number."""

    def arm() -> None:
        step = Fit.step

        def spoiled(self: Fit, batches: object) -> None:
            parameter = next(iter(self.task.parameters()))
            now = self.progress.step
            hook = parameter.register_hook(lambda gradient: gradient + value if first <= now <= last else gradient)
            step(self, batches)  # type: ignore[arg-type]
            hook.remove()

        Fit.step = spoiled  # type: ignore[method-assign]

    return arm


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradient_that_is_no_number_is_skipped_and_counted_also_over_a_resume(value: float, trainee: Trainee) -> None:
    assert trainee.finish(trainee.train("run", prepare=spoil_gradients(3, 5, value))) == 0, trainee.output()
    run = trainee.run("run")
    found, _ = run.checkpoints.latest()
    assert found is not None
    assert found.state["progress"]["bad_steps"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors("teacher").values())
    skipped = [(step, count) for step, name, count in read_metrics(run.path / "metrics.csv") if "skipped" in name]
    assert skipped == [(3, 0.0), (6, 3.0), (9, 3.0), (10, 3.0)]
    process = trainee.train("parts", prepare=spoil_gradients(3, 5, value))
    wait_for(lambda: (trainee.run("parts").checkpoints.folder / "step_00000004").exists(), process)
    process.kill()
    assert trainee.finish(process) != 0, "ended before the kill"
    assert trainee.finish(trainee.train("parts", prepare=spoil_gradients(3, 5, value))) == 0, trainee.output()
    assert_same(trainee.run("parts"), outcome(run))


def test_gradients_that_are_never_a_number_end_the_run_with_a_sentence(trainee: Trainee) -> None:
    arm = spoil_gradients(2, 99, np.nan)
    assert trainee.finish(trainee.train("run", "--fit.most_bad_steps", "3", prepare=arm)) == 2
    assert "3 steps in a row had a loss or gradient that is not finite" in trainee.output()
    assert "Traceback" not in trainee.output()
