"""``dcmt predict`` on volumes: slices by name or by choice, and the mean of a volume's slices."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from dcmt.commands.new_patients.graded_files import find_slices
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.images.slices import parse_slices

from .test_predict import grade, picture


def test_a_slice_of_a_volume_is_graded(trained_run: RunFolder, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 900, (40, 40, 3)).astype(np.int16)
    path = tmp_path / "vol 1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.4, 0.4, 3, 1])), path)
    with pytest.raises(UserError, match=r"rejected\.csv"):
        grade(trained_run, path, tmp_path / "whole")
    assert "#" in pd.read_csv(tmp_path / "whole" / "rejected.csv")["reason"].iat[0]
    grade(trained_run, Path(f"{path}#2"), tmp_path / "slice")
    assert pd.read_csv(tmp_path / "slice" / "predictions.csv")["image"].tolist() == ["vol 1.nii.gz#2"]
    with pytest.raises(UserError, match="neither an image nor a folder"):
        find_slices(tmp_path / "none.nii.gz#2", None)


def test_a_volume_is_graded_by_slices_and_by_the_mean_of_its_slices(trained_run: RunFolder, tmp_path: Path) -> None:
    folder, out = tmp_path / "knees", tmp_path / "out"
    picture(folder / "3_R.png")
    volume = np.random.default_rng(0).integers(0, 900, (40, 40, 7)).astype(np.int16)
    volume[:, :, 3] = 5  # constant: cannot be graded
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.4, 0.4, 3, 1])), folder / "7_L.nii.gz")
    grade(trained_run, folder, out, slices=parse_slices("middle:5"), no_overlays=True)
    table = pd.read_csv(out / "predictions.csv")
    assert table["image"].tolist() == ["3_R.png", *(f"7_L.nii.gz#{k}" for k in (1, 2, 4, 5))]
    (knee,) = pd.read_csv(out / "predictions_by_knee.csv").to_dict("records")
    shares = table.filter(regex="^p_[0-9]+$")[1:]
    means = shares.mean()
    assert [knee[name] for name in ("series", "side", "slices", "without_grade")] == ["7_L.nii.gz", "L", 5, 1]
    assert [knee[name] for name in shares] == pytest.approx(means.tolist())
    assert knee["predicted"] == means.argmax()
    # A single volume gives the same; --force removes the table of volumes where there are none.
    grade(trained_run, folder / "7_L.nii.gz", tmp_path / "one", slices=parse_slices("1-5"), no_overlays=True)
    assert (tmp_path / "one" / "predictions_by_knee.csv").read_bytes() == (out / "predictions_by_knee.csv").read_bytes()
    grade(trained_run, folder / "3_R.png", out, force=True)
    assert not (out / "predictions_by_knee.csv").exists()
    with pytest.raises(UserError, match="leave out --slices"):
        grade(trained_run, folder / "3_R.png", tmp_path / "none", slices=parse_slices("all"))
