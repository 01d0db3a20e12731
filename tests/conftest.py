"""What tests of several packages share: a tiny phantom, a tiny trained run, small networks, and the command line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcmt.config import GraderConfig, LossConfig
from dcmt.mean_teacher import MeanTeacher
from dcmt.train import train_grader
from knee.data.manifest import read_manifest
from knee.data.splits import make_split, write_split
from knee.engine.checkpoint import Checkpoints
from knee.engine.config import FitConfig, OptimizerConfig
from knee.engine.fit import Fit
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import Tracker
from knee.grades import load_grade_set
from knee.io.console import PACKAGES
from knee.phantom import write_phantom
from knee.task import Batch, Grading
from segmentation.config import SegmenterConfig

Values = dict[str, Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Several tests compare bits, and the machine has few cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def denormals_as_before() -> Iterator[None]:
    """A run sets this for its process; hypothesis refuses to draw numbers where it is set."""
    yield
    torch.set_flush_denormal(False)


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the packages log during the test, INFO and above."""
    handler = _Messages()
    for name in PACKAGES:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    yield handler.said
    for name in PACKAGES:
        logging.getLogger(name).removeHandler(handler)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 12 patients with 4 slices of 48 pixels, beside it ``split.csv``; not to be changed."""
    folder = tmp_path_factory.mktemp("phantom")
    path = write_phantom(folder / "data", patients=12, slices=4, size=48, seed=3, drawn_masks=16)
    manifest = read_manifest(path, load_grade_set("cartilage"))
    write_split(path.parent / "split.csv", make_split(manifest.table, seed=0))
    return path


@pytest.fixture(scope="session")
def grader_values(phantom: Path) -> Values:
    """Options of a grader that trains in seconds, as YAML would hold them."""
    return {
        "data": {
            "manifest": str(phantom),
            "split": str(phantom.parent / "split.csv"),
            "grade_set": "cartilage",
            "labeled_fraction": 0.6,
            "image_size": 48,
            "labeled_per_batch": 4,
            "unlabeled_per_batch": 2,
        },
        "model": {"backbone": "resnet10t", "stage": 2, "stride": 8},
        # By default so short a run has none of an average: its teacher would have the student's weights.
        "teacher": {"decay": 0.7},
        "fit": {
            "steps": 6,
            "log_every": 2,
            "validate_every": 3,
            "precision": "fp32",
            "device": "cpu",
            "threads": 1,
            "seed": 1,
        },
        "report": {"tensorboard": False, "cases": 2, "bootstrap": 100},
    }


@pytest.fixture
def grader_config(grader_values: Values) -> Callable[..., GraderConfig]:
    """A tiny grader's config with changes, given by dotted name: ``grader_config(**{"fit.steps": 3})``."""

    def build(**changes: Any) -> GraderConfig:
        return config_from_values(GraderConfig, changed(grader_values, changes), where="test")

    return build


@pytest.fixture
def segmenter_config(grader_values: Values) -> Callable[..., SegmenterConfig]:
    """A tiny segmenter's config with changes, given by dotted name."""

    def build(**changes: Any) -> SegmenterConfig:
        values = {name: dict(grader_values[name]) for name in ("data", "fit", "report")}
        values["data"]["unlabeled_per_batch"] = 0
        return config_from_values(SegmenterConfig, changed(values, changes), where="test")

    return build


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """A deep copy of nested values with some changed, given by dotted name."""
    copied: Values = {name: dict(part) if isinstance(part, dict) else part for name, part in values.items()}
    for name, value in changes.items():
        section, _, option = name.partition(".")
        if option:
            copied.setdefault(section, {})[option] = value
        else:
            copied[section] = value
    return copied


@pytest.fixture(scope="session")
def trained_run(grader_values: Values, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of a tiny DC-MT run, six steps, with TensorBoard; not to be changed."""
    values = changed(grader_values, {"report.tensorboard": True})
    config = config_from_values(GraderConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("runs") / "tiny", config, kind="grader")
    train_grader(config, run, resume=False)
    return run


@pytest.fixture(scope="session")
def command_environment() -> dict[str, str]:
    """The environment of subprocesses: one thread, no network, warnings as they are for a user."""
    offline = {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **offline, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def dcmt_command(command_environment: dict[str, str]) -> Run:
    """Runs ``dcmt ARGUMENTS`` in a process of its own: ``dcmt_command("check", path, cwd=folder)``."""

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dcmt.cli", *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=command_environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


class SmallGrader(nn.Module):
    """Two convolutions at stride 4, a classifier that maps and grades; with or without normalisation and dropout."""

    def __init__(self, *, grades: int = 3, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, grades)

    def forward(self, images: Tensor) -> Grading:
        features = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        logits = self.classifier(self.dropout(features.mean((2, 3))))
        return Grading(logits, F.conv2d(features, self.classifier.weight.detach()[:, :, None, None]))


@pytest.fixture
def small_grader() -> Callable[..., SmallGrader]:
    """Builds a small grader from a seed: ``small_grader(seed=1, norm=False)``."""

    def build(*, seed: int = 0, grades: int = 3, norm: bool = True, dropout: float = 0.0) -> SmallGrader:
        torch.manual_seed(seed)
        return SmallGrader(grades=grades, norm=norm, dropout=dropout)

    return build


@pytest.fixture
def small_batch() -> Callable[..., Batch]:
    """A random batch from a seed, the teacher's view a noisy copy of the student's: ``small_batch(4, 2, seed=1)``."""

    def build(
        labeled: int = 4, unlabeled: int = 2, *, seed: int = 0, size: int = 16, masked: int | None = None
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        student = torch.rand(labeled + unlabeled, 1, size, size, generator=generator)
        noise = torch.rand(student.shape, generator=generator)
        masks = (torch.rand(labeled, size, size, generator=generator) > 0.7).float()
        has_mask = torch.arange(labeled) < (labeled if masked is None else masked)
        return Batch(
            student=student,
            teacher=0.8 * student + 0.2 * noise,
            grades=torch.randint(0, 3, (labeled,), generator=generator),
            masks=masks * has_mask[:, None, None],
            has_mask=has_mask,
        )

    return build


class SeededBatches:
    """Batch k of the run is a function of k; ``spoiled`` ones hold NaN."""

    def __init__(self, make: Callable[..., Batch], spoiled: frozenset[int] = frozenset()) -> None:
        self.per_epoch = 5
        self.make = make
        self.spoiled = spoiled
        self.served: list[int] = []

    def from_batch(self, batch: int) -> Iterator[Batch]:
        while True:
            found = self.make(seed=batch)
            if batch in self.spoiled:
                found.student[0, 0, 0, 0] = float("nan")
            self.served.append(batch)
            yield found
            batch += 1


@pytest.fixture
def seeded_batches(small_batch: Callable[..., Batch]) -> Callable[..., SeededBatches]:
    """Small batches by number; those in a given set hold NaN: ``seeded_batches(frozenset({2}))``."""

    def build(spoiled: frozenset[int] = frozenset()) -> SeededBatches:
        return SeededBatches(small_batch, spoiled)

    return build


@pytest.fixture
def make_fit(
    tmp_path: Path, small_grader: Callable[..., nn.Module], seeded_batches: Callable[..., SeededBatches]
) -> Iterator[Callable[..., Fit]]:
    """A run of the loop in ``tmp_path / folder``; ``resume=True`` goes on from the last checkpoint there."""
    trackers: list[Tracker] = []

    def build(
        folder: str = "run",
        *,
        steps: int = 7,
        resume: bool = False,
        spoiled: frozenset[int] = frozenset(),
        dropout: float = 0.0,
        norm: bool = True,
        optimizer: OptimizerConfig | None = None,
        precision: str = "fp32",
        batches: Any = None,
        **config: Any,
    ) -> Fit:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        torch.manual_seed(0)
        # channels_last, as by default: what lies in another order in memory must come back in that order.
        student = small_grader(seed=2, dropout=dropout, norm=norm).to(memory_format=torch.channels_last)
        task = MeanTeacher(student, loss=LossConfig(), decay=0.8, ramp_steps=6, best_metric="val/score")
        task.validation = lambda networks, step: {"val/score": float(-abs(step - 4)), "val/other": step / 7}
        checkpoints = Checkpoints(path / "checkpoints")
        checkpoint = checkpoints.latest()[0] if resume else None
        fit = Fit(
            task=task,
            batches=batches or seeded_batches(spoiled),
            config=FitConfig(**{"log_every": 2, "validate_every": 3, **config}),
            optimizer_config=optimizer or OptimizerConfig(),
            device=torch.device("cpu"),
            precision=precision,
            tracker=Tracker(path, tensorboard=False, first_step=checkpoint.step if checkpoint else 0),
            checkpoints=checkpoints,
            steps=steps,
            state={"manifest_sha256": "m", "split_sha256": "s"},
            resume_command="dcmt train --resume RUN",
        )
        trackers.append(fit.tracker)
        if checkpoint is not None:
            fit.restore(checkpoint)
        return fit

    yield build
    for tracker in trackers:
        tracker.close()


@pytest.fixture(scope="session")
def trained_segmenter(tmp_path_factory: pytest.TempPathFactory, grader_values: Values) -> RunFolder:
    """The folder of a tiny segmenter's run, 24 steps; not to be changed."""
    from segmentation.train import train_segmenter  # its encoders are slow to import

    values = {name: dict(grader_values[name]) for name in ("data", "fit", "report")}
    values["data"] |= {"unlabeled_per_batch": 0, "labeled_per_batch": 8}
    values["fit"] |= {"steps": 24, "validate_every": 12, "log_every": 8}
    config = config_from_values(SegmenterConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("segmenter") / "unet", config, kind="segmenter")
    train_segmenter(config, run, resume=False)
    return run
