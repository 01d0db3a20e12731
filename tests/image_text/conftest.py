"""A tiny phantom with reports, and a tiny run on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_text.config import ImageTextConfig
from image_text.train import KIND, train_image_text
from knee.data.manifest import read_manifest
from knee.data.splits import make_split, write_split
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run
from knee.grades import load_grade_set
from knee.phantom import write_phantom
from tests.conftest import changed

Values = dict[str, Any]


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 16 patients with two films of 48 pixels and reports, beside it ``split.csv``; not to be changed."""
    folder = tmp_path_factory.mktemp("films")
    path = write_phantom(folder / "data", kind="xray", patients=16, size=48, seed=3, drawn_masks=4, reports=True)
    manifest = read_manifest(path, load_grade_set("kl"))
    write_split(path.parent / "split.csv", make_split(manifest.table, seed=0))
    return path


@pytest.fixture(scope="session")
def values(films: Path) -> Values:
    """Options of a run that trains in seconds."""
    return {
        "method": "lumbarclip",
        "data": {
            "manifest": str(films),
            "split": str(films.parent / "split.csv"),
            "grade_set": "kl",
            "image_size": 48,
            "labeled_per_batch": 8,
            "unlabeled_per_batch": 0,
        },
        "model": {"backbone": "resnet10t", "stage": 2, "stride": 8},
        "text": {"width": 16, "layers": 1, "heads": 2, "buckets": 256, "length": 48},
        "contrast": {"embed_dim": 16},
        "fit": {
            "steps": 4,
            "log_every": 2,
            "validate_every": 2,
            "precision": "fp32",
            "device": "cpu",
            "threads": 1,
            "seed": 1,
        },
        "report": {"tensorboard": False, "cases": 2, "bootstrap": 100},
    }


@pytest.fixture(scope="session")
def make_config(values: Values) -> Callable[..., ImageTextConfig]:
    """A tiny config with changes, given by dotted name."""

    def build(**changes: Any) -> ImageTextConfig:
        return config_from_values(ImageTextConfig, changed(values, changes), where="test")

    return build


@pytest.fixture(scope="session")
def pair_run(make_config: Callable[..., ImageTextConfig], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of a tiny contrastive run, four steps; not to be changed."""
    config = make_config()
    run = create_run(tmp_path_factory.mktemp("pairs") / "tiny", config, kind=KIND)
    train_image_text(config, run, resume=False)
    return run
