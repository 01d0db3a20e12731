"""A disk that fills up while a run writes, and data that change or vanish under it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Trainee, Undisturbed, assert_same
from .test_kills import wait_for

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


@pytest.mark.parametrize("tensorboard", ["false", "true"])
def test_disk_full_in_the_log(tensorboard: str, trainee: Trainee, undisturbed: Undisturbed, small_disk: Disk) -> None:
    disk = trainee.folder = small_disk("64m")
    process = trainee.train("run", "--report.tensorboard", tensorboard)
    metrics = trainee.run("run").path / "metrics.csv"
    wait_for(lambda: metrics.exists() and "val_teacher" in metrics.read_text(), process)
    filler = fill(disk)
    code = trainee.finish(process)
    filler.unlink()
    assert code == 2, code
    assert trainee.finish(trainee.train("run")) == 0, trainee.output()
    assert_same(trainee.run("run"), undisturbed.outcome)


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
    metrics = trainee.run("run").path / "metrics.csv"
    wait_for(lambda: metrics.exists() and "loss/total" in metrics.read_text(), process)
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
