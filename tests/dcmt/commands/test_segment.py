"""dcmt segment: masks for rows that have none, a manifest that names them, and what is refused."""

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
import segmentation_models_pytorch as smp
import torch
import yaml

from dcmt.cli import main
from dcmt.commands.segment import predict_command
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run, open_run
from knee.errors import UserError
from knee.io.console import show_messages
from segmentation.config import SegmenterConfig
from segmentation.train import train_segmenter
from tests.hostile import spoil

Make = Callable[..., SegmenterConfig]


def predict(run: RunFolder, folder: Path, **changes: object) -> list[str]:
    options = {
        "run": run.path,
        "manifest": None,
        "split": None,
        "out": folder / "masks",
        "manifest_out": folder / "manifest_masks.csv",
        "rows": "train",
        "dilation": 0.0,
        "device": "cpu",
        "external_model": False,
        "force": False,
    }
    show_messages()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert predict_command(argparse.Namespace(**{**options, **changes})) == 0
    return printed.getvalue().splitlines()


def test_masks_for_the_rest_and_a_manifest_that_names_them(
    trained_segmenter: RunFolder, phantom: Path, tmp_path: Path
) -> None:
    before = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    said = predict(trained_segmenter, tmp_path)
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


def test_images_of_another_manifest_and_split_get_masks(
    trained_segmenter: RunFolder, phantom: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(phantom, dtype=str, keep_default_na=False).iloc[:6].assign(mask="", split="train")
    table["image"] = [str((phantom.parent / name).resolve()) for name in table["image"]]
    table["patient"] = [f"new{number}" for number in range(6)]
    table.to_csv(tmp_path / "new.csv", index=False)
    assert (
        main(["split", str(tmp_path / "new.csv"), "--grade-set", "cartilage", "--out", str(tmp_path / "split.csv")])
        == 0
    )
    said = predict(trained_segmenter, tmp_path, manifest=tmp_path / "new.csv", split=tmp_path / "split.csv", rows="all")
    assert any("is not the split with which the segmenter was trained" in line for line in said)
    after = pd.read_csv(tmp_path / "manifest_masks.csv", dtype=str, keep_default_na=False)
    assert after["mask_source"].tolist() == ["segmenter"] * 6
    assert all((tmp_path / name).is_file() for name in after["mask"])


def test_nothing_is_overwritten_unasked(trained_segmenter: RunFolder, tmp_path: Path) -> None:
    predict(trained_segmenter, tmp_path)
    with pytest.raises(UserError, match="--force"):
        predict(trained_segmenter, tmp_path)
    predict(trained_segmenter, tmp_path, force=True)


def test_masks_of_a_segmenter_are_not_taken_for_drawn_ones(
    trained_segmenter: RunFolder, phantom: Path, tmp_path: Path, segmenter_config: Make, said: list[str]
) -> None:
    before = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    predict(trained_segmenter, tmp_path)
    masked = tmp_path / "manifest_masks.csv"
    first = pd.read_csv(masked, dtype=str, keep_default_na=False)
    config = segmenter_config(**{"data.manifest": str(masked), "fit.steps": 1})
    train_segmenter(config, create_run(tmp_path / "run", config, kind="segmenter"), resume=False)
    drawn = int((before["mask"].ne("") & before["split"].eq("train")).sum())
    assert any(f"{drawn} training images have a drawn mask" in line for line in said)

    printed = predict(
        trained_segmenter,
        tmp_path,
        manifest=masked,
        manifest_out=tmp_path / "again.csv",
        out=tmp_path / "more",
        rows="all",
    )
    again = pd.read_csv(tmp_path / "again.csv", dtype=str, keep_default_na=False)
    known = first["mask_source"].ne("")
    for column in ("mask_source", "mask_confidence"):
        assert again.loc[known, column].tolist() == first.loc[known, column].tolist()
    assert again.loc[~known, "mask_source"].eq("segmenter").all()
    assert any(f"{int((~known).sum())} masks written" in line for line in printed)


def test_after_a_new_split_nothing_is_reported_of_test(
    trained_segmenter: RunFolder, phantom: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_segmenter.path, tmp_path / "unet")
    for state in (tmp_path / "unet" / "checkpoints").glob("step_*/state.json"):
        values = json.loads(state.read_text())
        state.write_text(json.dumps({**values, "split_sha256": "0" * 64}))
    said = predict(RunFolder(tmp_path / "unet"), tmp_path)
    assert any("changed since the segmenter was trained" in line for line in said)
    assert not [line for line in said if "Dice" in line]


def test_labeled_fraction_has_no_part_in_it(
    grader_values, trained_segmenter: RunFolder, tmp_path: Path, capsys
) -> None:
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
    assert load_config(trained_segmenter).data.labeled_fraction == 0.6, "runs made with one go on"
    assert main(["segment", "train", "--resume", str(shutil.copytree(trained_segmenter.path, tmp_path / "unet"))]) == 0


def load_config(run: RunFolder) -> SegmenterConfig:
    values = open_run(run.path)[1]
    values.pop("kind")
    return config_from_values(SegmenterConfig, values, where="test")


def test_run_of_another_kind_is_refused(trained_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a segmenter's run"):
        predict(trained_run, tmp_path)


def test_an_encoder_from_elsewhere_needs_the_users_word(trained_segmenter: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(trained_segmenter.path, tmp_path / "unet")))
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    spoil(run.config, ("unet", "encoder"), json.dumps(f"tu-local-dir:{tmp_path / 'encoder'}"))
    with pytest.raises(UserError, match=r"without downloads and without external code; .* add --external-model"):
        predict(run, tmp_path)
    assert main(["segment", "train", "--resume", str(run.path), "--fit.steps", "25"]) == 2
    with pytest.raises(UserError, match="does not fit the network"):  # smp's own resnet18 has other names than timm's
        predict(run, tmp_path, external_model=True)


def test_a_huge_encoder_is_refused_before_it_takes_memory(
    trained_segmenter: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Path(shutil.copytree(trained_segmenter.path, tmp_path / "unet")))
    spoil(run.config, ("unet", "encoder"), "tu-convnext_xxlarge")
    built = []
    create = smp.Unet
    monkeypatch.setattr(smp, "Unet", lambda *a, **k: built.append(torch.empty(0).device.type) or create(*a, **k))
    with pytest.raises(UserError, match="does not fit the network"):
        predict(run, tmp_path)
    assert built == ["meta"]
