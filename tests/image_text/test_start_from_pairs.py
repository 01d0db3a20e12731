"""Graders that start from an image-text run: its encoder arrives, and it must not have seen what is held out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from clip_koa.model import ClipGrader
from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.network import GradingNetwork
from dcmt.train import build_task
from dcmt.trained.loaded import load_run
from image_text.config import ImageTextConfig
from image_text.train import build_towers
from knee.data.prepare import load_knee_data
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder
from knee.errors import UserError
from tests.conftest import changed

Values = dict[str, Any]


@pytest.fixture
def grader(values: Values, pair_run: RunFolder) -> Callable[..., GraderConfig]:
    """A grader on the same films that starts from the tiny image-text run, with changes."""
    kept = {name: values[name] for name in ("data", "model", "fit", "report")}
    off = {"loss.probability_consistency": 0.0, "loss.attention_consistency": 0.0, "loss.attention": 0.0}

    def build(**changes: Any) -> GraderConfig:
        missing = {"data.allow_missing_grades": True, "model.start": str(pair_run.path)}
        return config_from_values(GraderConfig, changed(kept, {**off, **missing, **changes}), where="test")

    return build


def student(config: GraderConfig) -> Any:
    torch.manual_seed(7)
    return build_task(config, load_knee_data(config.data), steps=3).networks["student"]


def towers(config: ImageTextConfig, run: RunFolder) -> GradingNetwork:
    network = build_towers(config, grades=5, fresh=False)
    best = run.checkpoints.best()
    assert best is not None
    best.load_network("teacher", network)
    return network.image.eval()


@torch.no_grad()
def test_a_grader_has_the_encoder_and_its_own_classifier(
    grader: Callable[..., GraderConfig], make_config: Callable[..., ImageTextConfig], pair_run: RunFolder
) -> None:
    network, image = student(grader()).eval(), towers(make_config(), pair_run)
    images = torch.rand(3, 1, 48, 48)
    torch.testing.assert_close(network.pooled(images), image.pooled(images), rtol=0, atol=0)
    assert not torch.equal(network.classifier.weight, image.classifier.weight)
    assert network.classifier.weight.requires_grad


@torch.no_grad()
def test_a_clip_koa_grader_has_the_encoder_too(
    grader: Callable[..., GraderConfig], make_config: Callable[..., ImageTextConfig], pair_run: RunFolder
) -> None:
    config = grader(
        **{
            "model.backbone": "resnet18", "model.stage": -1, "model.stride": 16, "model.head": "text",
            "clip.image": "timm:resnet10t", "clip.text": "small", "clip.pretrained": False, "clip.stage": 2, "clip.stride": 8,

        }
    )  # fmt: skip
    network, image = student(config).eval(), towers(make_config(), pair_run)
    assert isinstance(network, ClipGrader)
    pixels = torch.rand(2, 1, 48, 48)
    maps = network.image_tower.body.forward_intermediates(
        pixels.expand(-1, 3, -1, -1), indices=[2], norm=True, intermediates_only=True
    )[0]
    torch.testing.assert_close(maps, image.features(pixels), atol=1e-4, rtol=1e-4)


def test_another_encoder_or_normalisation_is_refused(grader: Callable[..., GraderConfig]) -> None:
    with pytest.raises(
        UserError, match=r"has another image encoder than this config .* same backbone, stage and stride"
    ):
        student(grader(**{"model.backbone": "resnet18"}))
    with pytest.raises(UserError, match=r"trained with model\.normalise image, this config has local"):
        student(grader(**{"model.normalise": "local"}))


def test_held_out_images_must_not_have_been_trained_on(
    grader: Callable[..., GraderConfig], films: Path, tmp_path: Path
) -> None:
    split = pd.read_csv(films.parent / "split.csv")
    order = {"train": "test", "test": "train", "val": "val"}
    split.assign(split=split["split"].map(order)).to_csv(tmp_path / "swapped.csv", index=False)
    with pytest.raises(UserError, match=r"was trained on \d+ images that are held out"):
        student(grader(**{"data.split": str(tmp_path / "swapped.csv")}))


def test_another_data_set_may_start_from_it(
    grader: Callable[..., GraderConfig], films: Path, pair_run: RunFolder, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(films.parent, other, ignore=shutil.ignore_patterns("cache"))
    (other / "split.csv").write_text((other / "split.csv").read_text() + "\n")
    config = {"data.manifest": str(other / "manifest.csv"), "data.split": str(other / "split.csv")}
    student(grader(**config))
    moved = tmp_path / "moved"
    shutil.copytree(pair_run.path, moved)
    (moved / "local" / "paths.yaml").unlink()
    with pytest.raises(UserError, match="so it cannot be checked whether it saw images that are held out here"):
        student(grader(**config, **{"model.start": str(moved)}))


def test_a_run_that_used_more_grades_is_refused(
    grader: Callable[..., GraderConfig], pair_run: RunFolder, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    shutil.copytree(pair_run.path, used)
    student(grader(**{"model.start": str(used), "data.labeled_fraction": 0.5}))
    text = (used / "config.yaml").read_text()
    assert "targets: same" in text
    (used / "config.yaml").write_text(text.replace("targets: same", "targets: labels"))
    with pytest.raises(UserError, match=r"was trained with 1 of the labels, this config has 0\.5"):
        student(grader(**{"model.start": str(used), "data.labeled_fraction": 0.5}))
    student(grader(**{"model.start": str(used)}))


def test_a_probe_reads_the_frozen_encoder(
    values: Values, pair_run: RunFolder, make_config: Callable[..., ImageTextConfig], tmp_path: Path
) -> None:
    path = tmp_path / "probe.yaml"
    kept = {name: values[name] for name in ("data", "model", "fit", "report")}
    path.write_text(yaml.safe_dump({**kept, "runs": str(tmp_path)}))
    out = tmp_path / "probe"
    more = ["--model.start", str(pair_run.path), "--out", str(out), "--split", "val", "--inverse-penalty", "1"]
    assert main(["probe", "--config", str(path), *more]) == 0
    assert (out / "metrics_val.json").is_file()
    loaded = load_run(out, checkpoint="last", device="cpu")
    images, encoder = torch.rand(2, 1, 48, 48), towers(make_config(), pair_run)
    with torch.no_grad():
        torch.testing.assert_close(loaded.bare["teacher"].pooled(images), encoder.pooled(images))
    assert float(loaded.bare["teacher"].classifier.weight.detach().abs().sum()) > 0


def test_a_probe_needs_an_image_text_run(
    values: Values, trained_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "probe.yaml"
    kept = {name: values[name] for name in ("data", "model", "fit", "report")}
    path.write_text(yaml.safe_dump({**kept, "runs": str(tmp_path)}))
    assert main(["probe", "--config", str(path), "--model.start", str(trained_run.path)]) == 2
    assert "is not an image-text run" in capsys.readouterr().err
    assert main(["probe", "--config", str(path)]) == 2
    assert "or an image-text run by --model.start" in capsys.readouterr().err
