"""A tiny training that is cheap to start: this process has everything imported and forks for each start."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcmt.cli import main
from dcmt.validation import GraderValidation
from knee.engine.record import code_version
from knee.engine.run import RunFolder
from knee.engine.tracking import read_metrics

collect_ignore = ["damage.py", "hostile.py", "reader.py"]
"""Run as scripts, by processes of their own."""
Prepare = Callable[[], None]
Figures = dict[str, str]
"""What the bench measured, by name."""
_FIGURES = pytest.StashKey[Figures]()
_KILLS = pytest.StashKey["Kills"]()
_TABLE = "FAULTS_TABLE"
"""Environment variable: where to write the figures as a table."""
_CLOCK = ("system/images_per_s", "system/memory_gib")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """The bench's figures, to be added to; they are printed at its end."""
    return request.config.stash.setdefault(_FIGURES, {})


@dataclass(frozen=True)
class Kills:
    """How many processes were killed, and after how many of these nothing was lost and the work went on; by kind."""

    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)

    def figures(self) -> Figures:
        total = {"kills survived": f"{self.survived.total()} of {self.tried.total()}"}
        return total | {f"of these {kind}": str(count) for kind, count in self.survived.items()}


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> Kills:
    """The bench's kills, to be added to."""
    return request.config.stash.setdefault(_KILLS, Kills())


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Print the figures with the commit, and write them as a table where one is asked for and every test passed."""
    found = config.stash.get(_FIGURES, {}) | (config.stash[_KILLS].figures() if _KILLS in config.stash else {})
    if not found:
        return
    passed, failed, error, skipped = (
        len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")
    )
    tests = f"{passed} of {passed + failed + error}" + (f", {skipped} skipped" if skipped else "")
    found = {"commit": code_version(), "tests passed": tests, **found}
    terminalreporter.section("figures of the faults bench")
    for name, value in found.items():
        terminalreporter.write_line(f"{name}: {value}")
    if path := os.environ.get(_TABLE):
        if exitstatus or not {"kills survived", "bad files handled"} <= found.keys():
            terminalreporter.write_line(f"{path} is not written: not the whole bench, or not all of it passed")
            return
        Path(path).write_text(faults_table(found), encoding="utf-8")
        terminalreporter.write_line(f"written: {path}")


def faults_table(found: Figures) -> str:
    """The figures in Markdown."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in found.items())
    head = "# Kills, full disks, damaged files\n\n| Figure | Value |\n| --- | --- |\n"
    return f"{head}{rows}\nMade by `make faults {_TABLE}=docs/results/faults.md`.\n"


@dataclass
class Trainee:
    """Starts ``dcmt`` commands in forked processes, in one folder of runs, with one config."""

    folder: Path
    config: Path
    command: tuple[str, ...] = ("train",)
    """The training command."""
    process: BaseProcess | None = None
    last_output: Path = field(default_factory=Path)

    def start(self, *arguments: object, prepare: Prepare | None = None) -> BaseProcess:
        """Start a command; ``prepare`` runs first in the new process, to arm a fault."""
        # Not among the runs: their disk may be full.
        self.last_output = Path(tempfile.mkstemp(dir=self.config.parent, suffix=".txt")[1])
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(
            target=_command, args=([str(a) for a in arguments], self.last_output, prepare), daemon=False
        )
        self.process.start()
        return self.process

    def train(self, name: str, *changes: str, prepare: Prepare | None = None) -> BaseProcess:
        """A new run, or resume the one that is there; a folder without a config, left by an early kill, is removed first."""
        run = self.run(name)
        if run.config.exists():  # the last file that a new run folder gets; without it the new run would be NAME-2
            return self.start(*self.command, "--resume", run.path, prepare=prepare)
        if run.path.exists():
            shutil.rmtree(run.path)
        options = ["--config", self.config, "--runs", self.folder, "--name", name, *changes]
        return self.start(*self.command, *options, prepare=prepare)

    def finish(self, process: BaseProcess, *, within: float = 300.0) -> int:
        """The exit code; −9 for a process that was killed."""
        process.join(within)
        assert process.exitcode is not None, f"still running after {within} s"
        return process.exitcode

    def output(self) -> str:
        """What the last command printed."""
        return self.last_output.read_text(encoding="utf-8")

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / name)


def _one_picture(self: GraderValidation, networks: Any, found: Any, step: int) -> None:
    """In place of matplotlib's, which take nine tenths of so short a run and tell nothing of resuming."""
    self.tracker.image("figure/step", np.full((8, 8, 3), step, np.uint8), step)


def _command(arguments: list[str], output: Path, prepare: Prepare | None) -> None:
    printed = io.StringIO()
    code = 70
    GraderValidation._draw = _one_picture  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if prepare is not None:
                prepare()
            try:
                code = main(arguments)
            except Exception:
                traceback.print_exc()
    finally:
        output.write_text(printed.getvalue(), encoding="utf-8")
        os._exit(code)


@dataclass(frozen=True)
class Outcome:
    """What two runs must share to the bit."""

    tensors: dict[str, torch.Tensor]
    """Weights and buffers of all networks, the optimiser, random state, losses not yet logged."""
    progress: str
    """Steps, best so far, patience used up, steps skipped."""
    rows: str
    """Of ``metrics.csv``, as text: some are NaN."""
    board: dict[str, list[tuple[int, Any]]]
    """What TensorBoard shows: steps and values of every curve, steps and bytes of every picture."""


def outcome(run: RunFolder) -> Outcome:
    checkpoint, damaged = run.checkpoints.latest()
    assert checkpoint is not None
    assert damaged == []
    tensors = {
        f"{file}.{name}": value
        for file in (name.removesuffix(".safetensors") for name in checkpoint.state["sha256"])
        for name, value in checkpoint.tensors(file).items()
    }
    best = run.checkpoints.best()
    assert best is not None
    progress = {name: value for name, value in checkpoint.state["progress"].items() if name != "seconds"}
    rows = [row for row in read_metrics(run.path / "metrics.csv") if row[1] not in _CLOCK]
    return Outcome(tensors, str((checkpoint.step, best.step, progress)), str(rows), shown(run.path / "tensorboard"))


def shown(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard reads from a folder, but for the clock; nothing where a run writes none."""
    if not folder.exists():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in _CLOCK
    }
    pictures = {
        tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
    return curves | pictures


def assert_same(run: RunFolder, wanted: Outcome) -> None:
    """The run ended as the undisturbed one did, bit for bit, and its records hold every step once."""
    found = outcome(run)
    assert found.tensors.keys() == wanted.tensors.keys()
    assert [name for name in found.tensors if not torch.equal(found.tensors[name], wanted.tensors[name])] == []
    assert found.progress == wanted.progress
    assert found.rows == wanted.rows
    assert found.board.keys() == wanted.board.keys()
    assert [tag for tag in found.board if str(found.board[tag]) != str(wanted.board[tag])] == []


@pytest.fixture(scope="session")
def fault_config(grader_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps, a checkpoint every second; dropout, so that the random state matters."""
    values = {name: dict(part) for name, part in grader_values.items()}
    values["fit"] |= {"steps": 10, "validate_every": 2, "log_every": 3}
    values["report"]["tensorboard"] = True
    values["model"]["dropout"] = 0.3
    path = tmp_path_factory.mktemp("faults") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def trainee(fault_config: Path, tmp_path: Path) -> Iterator[Trainee]:
    found = Trainee(tmp_path, fault_config)
    yield found
    if found.process is not None and found.process.is_alive():
        found.process.kill()
        found.process.join()


@pytest.fixture(scope="session")
def segmenter_trainee(fault_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainee:
    """Trains segmenters likewise; its run "undisturbed" is finished."""
    values = yaml.safe_load(fault_config.read_text(encoding="utf-8"))
    values = {name: values[name] for name in ("data", "fit", "report")}
    values["data"] |= {"unlabeled_per_batch": 0, "labeled_fraction": 1.0}
    values["fit"] |= {"steps": 6}
    values["unet"] = {"encoder": "tu-test_efficientnet"}
    path = fault_config.with_name("segmenter.yaml")
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    importlib.import_module("segmentation.train")  # slow, and forks have it then
    found = Trainee(tmp_path_factory.mktemp("segmenters"), path, ("segment", "train"))
    assert found.finish(found.train("undisturbed")) == 0, found.output()
    return found


@dataclass(frozen=True)
class Undisturbed:
    """How the run ends when nothing happens, and how long that takes."""

    outcome: Outcome
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(fault_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    found = Trainee(tmp_path_factory.mktemp("undisturbed"), fault_config)
    assert found.finish(found.train("warm")) == 0, found.output()  # the image cache is built once
    started = time.monotonic()
    assert found.finish(found.train("run")) == 0, found.output()
    seconds = time.monotonic() - started
    ended = outcome(found.run("run"))
    assert [step for step, _ in ended.board["loss/total"]] == [3, 6, 9, 10]
    assert [step for step, _ in ended.board["val_teacher/macro_f1"]] == [2, 4, 6, 8, 10]
    assert [step for step, _ in ended.board["figure/step"]] == [2, 4, 6, 8, 10]
    return Undisturbed(ended, seconds)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs of a size: ``small_disk("16m")``, called again changes the size. Skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    if sys.platform != "linux":
        pytest.skip("needs a tmpfs")
    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)
