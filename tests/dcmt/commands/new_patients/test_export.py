"""New patients as a page, NIfTI and DICOM: without a manifest, the same objects at every call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import generate_uid

from dcmt.cli import main
from dcmt.commands.new_patients.graded_files import chosen_formats
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.images.read import Pixels, read_image
from tests.knee.review.conftest import _KINDS


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """An MR series of three slices and two radiographs of a second patient."""
    folder = tmp_path / "images"
    folder.mkdir()
    series = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(), "PatientID": "SECRET-MR"}
    series["FrameOfReferenceUID"] = generate_uid()
    study = {"StudyInstanceUID": generate_uid(), "PatientID": "SECRET-XR"}
    y, x = np.mgrid[0:60, 0:50]
    for number in range(3):
        image = _KINDS["MR"]((800 + 9 * x + 7 * y + 40 * number).astype(np.uint16))
        image.ImagePositionPatient, image.InstanceNumber = [3 * number, 0, 0], number + 1
        _save(image, folder / f"mr{number}.dcm", series)
    for side in "LR":
        image = _KINDS["CR"]((800 + 9 * x + 7 * y).astype(np.uint16))
        image.Laterality = side
        _save(image, folder / f"xr{side}.dcm", study)
    return folder


def _save(image: pydicom.Dataset, path: Path, attributes: dict[str, str]) -> None:
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    image.save_as(path, enforce_file_format=True)


def _predict(run: RunFolder, images: Path, out: Path, *more: str) -> dict[str, pydicom.Dataset]:
    formats = ["--format", "csv,html,nifti,dicom", "--grade-anyway", "--device", "cpu"]
    assert main(["predict", str(run.path), str(images), "--out", str(out), *formats, *more]) == 0
    return {path.name: pydicom.dcmread(path) for path in sorted((out / "dicom").iterdir())}


def test_study_dates_are_shifted_on_request(trained_run: RunFolder, patients: Path, tmp_path: Path) -> None:
    for path in patients.iterdir():
        image = pydicom.dcmread(path)
        image.StudyDate = "20240301"
        image.save_as(path, enforce_file_format=True)
    for more, dates in (((), {""}), (("--shift-dates",), None)):
        made = _predict(trained_run, patients, tmp_path / f"out{len(more)}", "--format", "dicom", *more)
        found = {(image.PatientID, str(image.get("StudyDate", ""))) for image in made.values()}
        assert len(found) == 2, "one date for each of the two patients"
        assert {date for _, date in found} == dates or all("20230301" <= date < "20240301" for _, date in found)


def test_new_patients_get_all_formats_and_the_same_objects_again(
    trained_run: RunFolder, patients: Path, tmp_path: Path
) -> None:
    made = _predict(trained_run, patients, tmp_path / "out")
    graded = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert len(graded) == 5 and not (tmp_path / "out" / "overlays").exists()
    assert (tmp_path / "out" / "review.html").exists()
    assert (
        len({one.PatientID for one in made.values()}) == 2 and len({one.StudyInstanceUID for one in made.values()}) == 2
    )
    assert not any(secret in one.to_json() for one in made.values() for secret in ("SECRET-MR", "SECRET-XR", "Doe"))
    reports = [one for one in made.values() if one.Modality == "SR"]
    series = [one for one in reports if "series of 3 slices" in one.to_json()]
    assert len(series) == 1, "one grade for the exam"
    assert not any("student" in name for name in made), "only the network that graded"
    assert len(list((tmp_path / "out" / "nifti").iterdir())) == 3, "one volume of the series, two radiographs"
    key = tmp_path / "out" / "local" / "review_key.csv"
    assert key.stat().st_mode & 0o077 == 0 and "xrL.dcm" in key.read_text()
    again = _predict(trained_run, patients, tmp_path / "again")
    assert {name: one.SOPInstanceUID for name, one in made.items()} == {
        name: one.SOPInstanceUID for name, one in again.items()
    }
    kept = _predict(trained_run, patients, tmp_path / "kept", "--keep-identity")
    assert {one.PatientID for one in kept.values()} == {"SECRET-MR", "SECRET-XR"}


def test_an_image_is_read_once_for_table_and_objects(
    trained_run: RunFolder, patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> Pixels:
        read.append(path.name)
        return read_image(path)

    monkeypatch.setattr("dcmt.onnx.reader.read_image", counted)
    made = _predict(trained_run, patients, tmp_path / "once")
    assert len(read) == len(set(read)) == 5
    monkeypatch.setattr("dcmt.commands.predict.KEPT_PX", 0)
    again = _predict(trained_run, patients, tmp_path / "twice")
    assert len(read) == 5 + 2 * 5
    assert {name: one.SOPInstanceUID for name, one in made.items()} == {
        name: one.SOPInstanceUID for name, one in again.items()
    }


def test_formats_are_checked_before_the_run_is_opened() -> None:
    assert chosen_formats(" csv, dicom,csv") == ("csv", "dicom")
    with pytest.raises(UserError, match="format pdf; choose from csv, png, html, nifti, dicom"):
        chosen_formats("csv,pdf")
    with pytest.raises(UserError, match="format none"):
        chosen_formats(",")
