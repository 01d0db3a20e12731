"""A name planted in every identity field of the input is found nowhere in a run folder but in local/."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dcmt.cli import main
from dcmt.config import GraderConfig

MARKER = "Mustermann"


@pytest.fixture(scope="module")
def private_run(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data whose folders, files, patients and free columns are all called by the marker; evaluated."""
    folder = tmp_path_factory.mktemp("private")
    data = folder / f"study_{MARKER}"
    shutil.copytree(phantom.parent, data, ignore=shutil.ignore_patterns("cache", "truth*"))
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    split = pd.read_csv(data / "split.csv", dtype=str, keep_default_na=False)
    renamed = {name: f"images/{MARKER}_{number}.png" for number, name in enumerate(table["image"])}
    for old, new in renamed.items():
        (data / old).rename(data / new)
    table["image"], split["image"] = table["image"].map(renamed), split["image"].map(renamed)
    table["patient"] = MARKER + table["patient"]
    table["report"] = f"Mr {MARKER} fell"
    table.to_csv(data / "manifest.csv", index=False)
    split.to_csv(data / f"{MARKER}.csv", index=False)
    options = {
        "data.manifest": data / "manifest.csv",
        "data.split": data / f"{MARKER}.csv",
        "data.cache": folder / f"cache_{MARKER}",
        "data.labeled_fraction": 0.6,
        "data.image_size": 48,
        "data.labeled_per_batch": 4,
        "data.unlabeled_per_batch": 2,
        "model.backbone": "resnet10t",
        "model.stage": 2,
        "model.stride": 8,
        "fit.steps": 2,
        "fit.precision": "fp32",
        "fit.device": "cpu",
        "report.bootstrap": 100,
        "runs": folder,
        "name": "run",
    }
    assert main(["train", *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert main(["evaluate", str(folder / "run"), "--device", "cpu"]) == 0
    assert main(["attention", str(folder / "run"), "--device", "cpu", "--cases", "2"]) == 0
    return folder / "run"


def shared(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if "local" not in path.relative_to(run).parts]


def test_no_byte_outside_local_holds_the_marker(private_run: Path) -> None:
    files = [path for path in shared(private_run) if path.is_file()]
    assert len(files) > 10
    assert {path.suffix for path in files} >= {".yaml", ".csv", ".json", ".png", ".safetensors"}
    assert any("tfevents" in path.name for path in files)
    needles = [
        text.encode(code) for text in (MARKER, MARKER.lower(), MARKER.upper()) for code in ("utf-8", "utf-16-le")
    ]
    found = [path for path in files if any(needle in path.read_bytes() for needle in needles)]
    assert found == []


def test_no_name_outside_local_holds_the_marker(private_run: Path) -> None:
    assert [path for path in shared(private_run) if MARKER.lower() in path.name.lower()] == []


def test_what_names_people_is_in_local_and_for_the_owner_alone(private_run: Path) -> None:
    local = private_run / "local"
    assert local.stat().st_mode & 0o077 == 0
    holding = {path.name for path in local.iterdir() if MARKER.encode() in path.read_bytes()}
    assert {"cases.csv", "split.csv", "paths.yaml", "predictions_test.csv"} <= holding
    assert [path.name for path in local.iterdir() if path.stat().st_mode & 0o077] == []


def test_a_run_without_its_local_folder_still_grades(private_run: Path, tmp_path: Path, phantom: Path) -> None:
    shutil.copytree(private_run, tmp_path / "shown", ignore=shutil.ignore_patterns("local"))
    image = sorted((phantom.parent / "images").iterdir())[0]
    arguments = ["predict", str(tmp_path / "shown"), str(image), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 0
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 1


def test_config_of_the_run_is_still_whole(private_run: Path, grader_config: Callable[..., GraderConfig]) -> None:
    from dcmt.apply import load_run

    assert MARKER in load_run(private_run, checkpoint="last", device="cpu").config.data.manifest
