"""What tests of several packages share: a tiny phantom, a tiny trained run, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dcmt.config import GraderConfig, SegmenterConfig
from dcmt.options import config_from_values
from dcmt.run import RunFolder, create_run
from dcmt.train import train_grader
from knee.grades import load_grade_set
from knee.manifest import read_manifest
from knee.phantom import write_phantom
from knee.splits import make_split, write_split

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
    train_grader(config, run, say=lambda _: None, resume=False)
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
