"""A DICOM export whose evidence is one known cell, and what the tests of this folder read of it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from knee.images.original import read_original
from knee.images.read import prepare, read_pixels
from knee.review.dicom.export import DicomExport
from knee.review.writer import Exported
from tests.knee.review.conftest import _KINDS

SIZE = 128


SHAPES = {"MR": (200, 160), "DX": (300, 420), "CR": (300, 420)}


class _Export(DicomExport):
    """Reads the originals of cases, as the export of many does."""

    def write(self, *cases) -> Exported:
        done = [self.add(case, read_original(case.source)) for case in cases] + [self.finish()]
        return Exported(*(tuple(one for part in done for one in getattr(part, name)) for name in ("files", "left_out")))


@pytest.fixture
def export(tmp_path, run):
    return _Export(tmp_path / "dicom", run, "1.0", b"salt", maps=True)


def _source_values(kind: str) -> np.ndarray:
    height, width = SHAPES[kind]
    y, x = np.mgrid[0:height, 0:width]
    return (800 + 4 * x + 3 * y).astype(np.uint16)


@pytest.fixture
def write_series(write_source):
    """``write_series("MR", count, **attributes)``: images of one series; slices of MR are 3 mm apart, last first."""

    def write(kind: str, count: int, **attributes: object) -> list[Path]:
        shared = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()} | attributes
        if kind == "MR":
            shared["FrameOfReferenceUID"] = generate_uid()
        paths = []
        for number in range(count):
            place = {"ImagePositionPatient": [40 - 3 * number, -60, 60]} if kind == "MR" else {}
            paths.append(write_source(kind, _source_values(kind), InstanceNumber=number + 1, **shared, **place))
        return paths

    return write


@pytest.fixture
def write_enhanced(tmp_path):
    """``write_enhanced(count)``: an Enhanced MR of ``count`` slices, 3 mm apart."""

    def write(count: int) -> Path:
        image = _KINDS["MR"](_source_values("MR"))
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
        image.PixelData, image.NumberOfFrames = image.PixelData * count, count
        image.PatientID, image.ImageType = "E1", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        shared = Dataset()
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = image.ImageOrientationPatient
        shared.PixelMeasuresSequence[0].PixelSpacing = image.PixelSpacing
        shared.PixelMeasuresSequence[0].SliceThickness = image.SliceThickness
        image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], []
        for number in range(count):
            own = Dataset()
            own.PlanePositionSequence = [Dataset()]
            own.PlanePositionSequence[0].ImagePositionPatient = [40 - 3 * number, -60, 60]
            image.PerFrameFunctionalGroupsSequence.append(own)
        for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
            del image[keyword]
        for keyword in ("ScanningSequence", "SequenceVariant", "ScanOptions", "EchoTime", "RepetitionTime"):
            del image[keyword]
        path = tmp_path / "enhanced.dcm"
        image.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def case_of(make_case):
    """``case_of(path, side)``: a case whose evidence is one cell of the grid, row 4 and column 11 of 16."""

    def make(path: Path | str, side: str, **changes: object):
        image, geometry = prepare(read_pixels(path).values, SIZE, mirror=side == "L")
        evidence = np.zeros((16, 16), np.float32)
        evidence[4, 11] = 2.0
        case = make_case(1)
        views = {name: replace(getattr(case, name), class_map=evidence) for name in ("student", "teacher")}
        values = {"image": image, "geometry": geometry, "source": path, "side": side, "cartilage": None} | views
        return make_case(1, **(values | changes))

    return make


def _expected_place(kind: str, side: str) -> np.ndarray:
    """Where the evidence lies on the original pixels (pixel centres are whole numbers), worked out by hand."""
    height, width = SHAPES[kind]
    square = max(height, width)
    row, column = np.array([4.5, 11.5]) / 16 * square
    if side == "L":
        column = square - column
    return np.array([row - (square - height) / 2, column - (square - width) / 2]) - 0.5


def _centroid(weights: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(weights.shape)
    return np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()


def _named(exported: Exported) -> dict[str, Path]:
    return {path.stem.split("_", 1)[1]: path for path in exported.files}


def _complaints(path: Path) -> list[str]:
    if not shutil.which("dciodvfy"):
        pytest.skip("DICOM objects are checked by dciodvfy: apt-get install dicom3tools")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def _disagreements(paths) -> list[str]:
    """The errors of dcentvfy: attributes of a patient, study or series that differ among its objects."""
    if not shutil.which("dcentvfy"):
        pytest.skip("whole exports are checked by dcentvfy: apt-get install dicom3tools")
    done = subprocess.run(["dcentvfy", *paths], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
