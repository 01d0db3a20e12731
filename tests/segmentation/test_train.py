"""Segmenter runs: what they learn in a few steps, and masks for the rows that have none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from knee.data.prepare import load_knee_data
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import read_metrics
from knee.errors import UserError
from segmentation.config import SegmenterConfig
from segmentation.train import build_task, train_segmenter
from segmentation.unet import build_segmenter

Make = Callable[..., SegmenterConfig]


def test_dice_rises(trained_segmenter: RunFolder) -> None:
    dice = [value for _, name, value in read_metrics(trained_segmenter.path / "metrics.csv") if name == "val/dice"]
    loss = [value for _, name, value in read_metrics(trained_segmenter.path / "metrics.csv") if name == "loss/total"]
    assert len(dice) == 2
    assert dice[-1] > 0.3
    assert loss[-1] < loss[0]


def test_a_resumed_segmenter_fetches_no_weights(
    trained_segmenter: RunFolder, segmenter_config: Make, monkeypatch
) -> None:
    config = segmenter_config(**{"unet.encoder_weights": "imagenet"})
    asked: list[str] = []

    def build(encoder: str, *, encoder_weights: str = "", **options: float) -> nn.Module:
        asked.append(encoder_weights)
        return build_segmenter(encoder, **options)

    monkeypatch.setattr("segmentation.train.build_segmenter", build)
    data = load_knee_data(config.data, graded=False)
    for checkpoint in (None, trained_segmenter.checkpoints.best()):
        build_task(config, data, device=torch.device("cpu"), fresh=checkpoint is None)
    assert asked == ["imagenet", ""]


def test_too_few_masks_to_learn_from(phantom: Path, tmp_path: Path, segmenter_config: Make) -> None:
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(tmp_path / "data/manifest.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"].eq("train"), "mask"] = ""
    table.to_csv(tmp_path / "data/manifest.csv", index=False)
    config = segmenter_config(**{"data.manifest": str(tmp_path / "data/manifest.csv")})
    run = create_run(tmp_path / "run", config, kind="segmenter")
    with pytest.raises(UserError, match=r"0 of \d+ rows have a drawn mask, at least 2 are needed"):
        train_segmenter(config, run, resume=False)
