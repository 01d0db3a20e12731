"""A folder that holds what an earlier prediction or training wrote is graded as if it did not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from dcmt.cli import main
from dcmt.run import RunFolder


def test_own_overlays_and_caches_are_not_graded(trained_run: RunFolder, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "knees"
    folder.mkdir()
    names = sorted(path.name for path in (phantom.parent / "images").iterdir())[:3]
    for name in names:
        shutil.copy(phantom.parent / "images" / name, folder / name)
    shutil.copytree(phantom.parent / "cache", folder / "cache")
    arguments = ["predict", str(trained_run.path), str(folder), "--device", "cpu", "--out"]
    for number in range(2):
        assert main([*arguments, str(folder / f"graded{number}")]) == 0
        assert pd.read_csv(folder / f"graded{number}" / "predictions.csv")["image"].tolist() == names
        assert len(list((folder / f"graded{number}").rglob("*.png"))) == 3
    # The folder of the images may be that of the predictions, too: it keeps its images.
    assert main([*arguments, str(folder), "--force"]) == 0
    assert main([*arguments, str(tmp_path / "last")]) == 0
    assert pd.read_csv(tmp_path / "last" / "predictions.csv")["image"].tolist() == names
