"""Image-text runs: chosen by ``method``, resumed bit for bit, and nothing of a report outside local/."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dcmt.cli import main
from dcmt.train import trains_image_text
from image_text.config import ImageTextConfig
from image_text.train import KIND, train_image_text
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import read_metrics
from knee.errors import UserError
from tests.conftest import changed

Make = Callable[..., ImageTextConfig]
MARKER = "Zwischenrippenraum"
"""A word that only a planted report holds."""


def test_a_run_logs_its_loss_its_guards_and_validation(pair_run: RunFolder) -> None:
    names = {name for _, name, _ in read_metrics(pair_run.path / "metrics.csv")}
    assert {"loss/soft_clip", "contrast/kl", "contrast/own_mass", "contrast/rank_images", "schedule/scale"} <= names
    assert {
        "val_teacher/zero_shot_kappa",
        "val_teacher/mrr",
        "val_student/mrr",
        "val_teacher/image_to_report_recall_at_5",
    } <= names
    best = pair_run.checkpoints.best()
    assert best is not None
    assert best.state["best_metric"] == "val_teacher/mrr"


@pytest.mark.parametrize("queue", [0, 12])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    pair_run: RunFolder, make_config: Make, tmp_path: Path, queue: int
) -> None:
    change = {"contrast.queue": queue}
    config, whole = make_config(**change), pair_run
    if queue:
        whole = create_run(tmp_path / "whole", config, kind=KIND)
        train_image_text(config, whole, resume=False)
    run = create_run(tmp_path / "half", config, kind=KIND)
    train_image_text(make_config(**{"fit.steps": 2, "fit.validate_every": 2} | change), run, resume=False)
    train_image_text(config, run, resume=True)
    for network in ("student", "teacher", "optimizer", *(["queue"] if queue else [])):
        one, two = (
            load_file(path / "checkpoints" / "step_00000004" / f"{network}.safetensors")
            for path in (whole.path, run.path)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), network


def test_the_method_of_a_config_chooses(tmp_path: Path, pair_run: RunFolder) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("method: lumbarclip\n")
    assert trains_image_text(["--config", str(path)])
    assert trains_image_text(["--resume", str(pair_run.path)])
    assert trains_image_text(["--method=lumbarclip"])
    assert not trains_image_text(["--config", str(path), "--method", "fixmatch"])
    assert not trains_image_text([])
    assert not trains_image_text(["--config", str(tmp_path / "absent.yaml")])


def test_from_the_command_line_and_no_report_outside_local(values: dict[str, Any], films: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(films.parent, data, ignore=shutil.ignore_patterns("cache", ".case_salt"))
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    table["report"] += f" {MARKER}"
    table.to_csv(data / "manifest.csv", index=False)
    moved = {"data.manifest": str(data / "manifest.csv"), "data.split": str(data / "split.csv")}
    config = changed(values, {**moved, "report.tensorboard": True, "runs": str(tmp_path), "name": "run"})
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(tmp_path / "a.yaml")]) == 0
    run = tmp_path / "run"
    assert main(["retrieve", str(run), "--device", "cpu", "--show-reports", "--queries", "1"]) == 0
    files = [path for path in run.rglob("*") if path.is_file() and "local" not in path.relative_to(run).parts]
    assert len(files) > 5
    spellings = [text.encode(code) for text in (MARKER, MARKER.lower()) for code in ("utf-8", "utf-16-le")]
    assert [path for path in files if any(word in path.read_bytes() for word in spellings)] == []
    files = [path for path in files if path.name != "grade_set.yaml"]  # its phrases name findings, too
    words = {word.strip(".,;:").lower() for report in table["report"] for word in report.split() if len(word) > 9}
    assert "compartment" in words
    assert [path for path in files for word in words if word.encode() in path.read_bytes().lower()] == []


def test_targets_labels_need_grades(films: Path, make_config: Make, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(films.parent, data, ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    table["grade"] = ""
    table.to_csv(data / "manifest.csv", index=False)
    config = make_config(**{"data.manifest": str(data / "manifest.csv"), "contrast.targets": "labels"})
    run = create_run(tmp_path / "run", config, kind=KIND)
    with pytest.raises(UserError, match=r"contrast\.targets is labels, but no training image has a grade"):
        train_image_text(config, run, resume=False)


def test_without_a_single_pair(films: Path, make_config: Make, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(films.parent, data, ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"] == "train", "report"] = ""
    table.to_csv(data / "manifest.csv", index=False)
    config = make_config(**{"data.manifest": str(data / "manifest.csv")})
    run = create_run(tmp_path / "run", config, kind=KIND)
    with pytest.raises(UserError, match=r"0 training images have a report, fewer than data\.labeled_per_batch"):
        train_image_text(config, run, resume=False)
