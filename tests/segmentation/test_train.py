"""Segmenter runs: what they learn in a few steps, and masks for the rows that have none."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from dcmt.cli import main
from dcmt.commands.segment import predict_command
from knee.data.prepare import load_knee_data
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run, open_run
from knee.engine.tracking import read_metrics
from knee.errors import UserError
from knee.io.console import show_messages
from segmentation.config import SegmenterConfig
from segmentation.train import build_task, train_segmenter
from segmentation.unet import build_segmenter

Make = Callable[..., SegmenterConfig]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, grader_values) -> RunFolder:
    values = {name: dict(grader_values[name]) for name in ("data", "fit", "report")}
    values["data"] |= {"unlabeled_per_batch": 0, "labeled_per_batch": 8}
    values["fit"] |= {"steps": 24, "validate_every": 12, "log_every": 8}
    config = config_from_values(SegmenterConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("segmenter") / "unet", config, kind="segmenter")
    train_segmenter(config, run, resume=False)
    return run


def predict(run: RunFolder, folder: Path, **changes: object) -> list[str]:
    options = {
        "run": run.path,
        "manifest": None,
        "out": folder / "masks",
        "manifest_out": folder / "manifest_masks.csv",
        "rows": "train",
        "dilation": 0.0,
        "device": "cpu",
        "force": False,
    }
    show_messages()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert predict_command(argparse.Namespace(**{**options, **changes})) == 0
    return printed.getvalue().splitlines()


def test_dice_rises(trained: RunFolder) -> None:
    dice = [value for _, name, value in read_metrics(trained.path / "metrics.csv") if name == "val/dice"]
    loss = [value for _, name, value in read_metrics(trained.path / "metrics.csv") if name == "loss/total"]
    assert len(dice) == 2
    assert dice[-1] > 0.3
    assert loss[-1] < loss[0]


def test_masks_for_the_rest_and_a_manifest_that_names_them(trained: RunFolder, phantom: Path, tmp_path: Path) -> None:
    before = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    said = predict(trained, tmp_path)
    after = pd.read_csv(tmp_path / "manifest_masks.csv", dtype=str, keep_default_na=False)
    drawn = before["mask"].ne("")
    train = before["split"].eq("train")
    assert after["mask_source"].tolist() == [
        "drawn" if has else "segmenter" if trains else "" for has, trains in zip(drawn, train, strict=True)
    ]
    for row in after.index[after["mask_source"].eq("segmenter")][:5]:
        mask = cv2.imread(str(tmp_path / after["mask"].iat[row]), cv2.IMREAD_GRAYSCALE)
        assert mask.shape == (48, 48)
    assert (tmp_path / after["image"].iat[0]).resolve() == (phantom.parent / before["image"].iat[0]).resolve()
    assert any("test: Dice" in line for line in said)
    assert pd.read_csv(phantom, dtype=str, keep_default_na=False).equals(before)


def test_nothing_is_overwritten_unasked(trained: RunFolder, tmp_path: Path) -> None:
    predict(trained, tmp_path)
    with pytest.raises(UserError, match="--force"):
        predict(trained, tmp_path)
    predict(trained, tmp_path, force=True)


def test_masks_of_a_segmenter_are_not_taken_for_drawn_ones(
    trained: RunFolder, phantom: Path, tmp_path: Path, segmenter_config: Make, said: list[str]
) -> None:
    before = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    predict(trained, tmp_path)
    masked = tmp_path / "manifest_masks.csv"
    first = pd.read_csv(masked, dtype=str, keep_default_na=False)
    config = segmenter_config(**{"data.manifest": str(masked), "fit.steps": 1})
    train_segmenter(config, create_run(tmp_path / "run", config, kind="segmenter"), resume=False)
    drawn = int((before["mask"].ne("") & before["split"].eq("train")).sum())
    assert any(f"{drawn} training images have a drawn mask" in line for line in said)

    printed = predict(
        trained, tmp_path, manifest=masked, manifest_out=tmp_path / "again.csv", out=tmp_path / "more", rows="all"
    )
    again = pd.read_csv(tmp_path / "again.csv", dtype=str, keep_default_na=False)
    known = first["mask_source"].ne("")
    for column in ("mask_source", "mask_confidence"):
        assert again.loc[known, column].tolist() == first.loc[known, column].tolist()
    assert again.loc[~known, "mask_source"].eq("segmenter").all()
    assert any(f"{int((~known).sum())} masks written" in line for line in printed)


def test_a_split_made_anew_says_nothing_of_test(trained: RunFolder, phantom: Path, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "unet")
    for state in (tmp_path / "unet" / "checkpoints").glob("step_*/state.json"):
        values = json.loads(state.read_text())
        state.write_text(json.dumps({**values, "split_sha256": "0" * 64}))
    said = predict(RunFolder(tmp_path / "unet"), tmp_path)
    assert any("changed since the segmenter was trained" in line for line in said)
    assert not [line for line in said if "Dice" in line]


def test_a_resumed_segmenter_fetches_no_weights(trained: RunFolder, segmenter_config: Make, monkeypatch) -> None:
    config = segmenter_config(**{"unet.encoder_weights": "imagenet"})
    asked: list[str] = []

    def build(encoder: str, *, encoder_weights: str = "", **options: float) -> nn.Module:
        asked.append(encoder_weights)
        return build_segmenter(encoder, **options)

    monkeypatch.setattr("segmentation.train.build_segmenter", build)
    data = load_knee_data(config.data, graded=False)
    for checkpoint in (None, trained.checkpoints.best()):
        build_task(config, data, device=torch.device("cpu"), fresh=checkpoint is None)
    assert asked == ["imagenet", ""]


def test_labeled_fraction_has_no_part_in_it(grader_values, trained: RunFolder, tmp_path: Path, capsys) -> None:
    values = {name: dict(grader_values[name]) for name in ("data", "fit", "report")}
    values["data"] |= {"unlabeled_per_batch": 0, "labeled_fraction": 1.0}
    values["fit"]["steps"] = 1
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values | {"runs": str(tmp_path / "runs")}))
    command = ["segment", "train", "--config", str(path)]
    for option in ("--labeled-fraction", "--data.labeled_fraction"):
        assert main([*command, option, "0.1"]) == 2
        assert (
            "data.labeled_fraction is 0.1, but dcmt segment train trains on every drawn mask" in capsys.readouterr().err
        )
    assert not (tmp_path / "runs").exists()
    assert main(command) == 0
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["small-s1"]
    assert main(["segment", "train", "--help"]) == 0
    assert "--labeled-fraction" not in capsys.readouterr().out
    assert load_config(trained).data.labeled_fraction == 0.6, "runs made with one go on"
    assert main(["segment", "train", "--resume", str(shutil.copytree(trained.path, tmp_path / "unet"))]) == 0


def load_config(run: RunFolder) -> SegmenterConfig:
    values = open_run(run.path)[1]
    values.pop("kind")
    return config_from_values(SegmenterConfig, values, where="test")


def test_run_of_another_kind_is_refused(trained_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a segmenter's run"):
        predict(trained_run, tmp_path)


def test_too_few_masks_to_learn_from(phantom: Path, tmp_path: Path, segmenter_config: Make) -> None:
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(tmp_path / "data/manifest.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"].eq("train"), "mask"] = ""
    table.to_csv(tmp_path / "data/manifest.csv", index=False)
    config = segmenter_config(**{"data.manifest": str(tmp_path / "data/manifest.csv")})
    run = create_run(tmp_path / "run", config, kind="segmenter")
    with pytest.raises(UserError, match=r"0 of \d+ rows have a drawn mask, at least 2 are needed"):
        train_segmenter(config, run, resume=False)
