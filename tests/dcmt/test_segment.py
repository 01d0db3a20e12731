"""Segmenter runs: what they learn in a few steps, and masks for the rows that have none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import pandas as pd
import pytest

from dcmt.config import SegmenterConfig
from dcmt.run import RunFolder, create_run
from dcmt.segment import predict_command, train_segmenter
from dcmt.tracking import read_metrics
from knee.errors import UserError

Make = Callable[..., SegmenterConfig]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, grader_values) -> RunFolder:
    from dcmt.options import config_from_values

    values = {name: dict(grader_values[name]) for name in ("data", "fit", "report")}
    values["data"] |= {"unlabeled_per_batch": 0, "labeled_per_batch": 8}
    values["fit"] |= {"steps": 24, "validate_every": 12, "log_every": 8}
    config = config_from_values(SegmenterConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("segmenter") / "unet", config, kind="segmenter")
    train_segmenter(config, run, say=lambda _: None, resume=False)
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
    said: list[str] = []
    assert predict_command(argparse.Namespace(**{**options, **changes}), say=said.append) == 0
    return said


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


def test_run_of_another_kind_is_refused(trained_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the run of a segmenter"):
        predict(trained_run, tmp_path)


def test_too_few_masks_to_learn_from(phantom: Path, tmp_path: Path, segmenter_config: Make) -> None:
    import shutil

    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(tmp_path / "data/manifest.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"].eq("train"), "mask"] = ""
    table.to_csv(tmp_path / "data/manifest.csv", index=False)
    config = segmenter_config(**{"data.manifest": str(tmp_path / "data/manifest.csv")})
    run = create_run(tmp_path / "run", config, kind="segmenter")
    with pytest.raises(UserError, match=r"0 of \d+ rows have a mask, at least 2 are needed"):
        train_segmenter(config, run, say=lambda _: None, resume=False)
