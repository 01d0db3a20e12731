"""Studies whose attention lies on painted squares, and one of real radiographs: what a viewer must show where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from knee.grades import load_grade_set
from knee.images.original import read_original
from knee.images.read import prepare, read_pixels
from knee.review.cases import ReviewCase
from knee.review.dicom.export import DicomExport
from knee.review.page.html import ReviewRun
from tests.knee.review.conftest import _KINDS

SLICES = 8
SHAPES = {"MR": (200, 160), "DX": (300, 420)}
Cells = Mapping[str, tuple[int, int]]
_HALF_SIDE = 6


def cells_of(number: int) -> Cells:
    """The cell of the grid (16 × 16) that each network attends to in slice ``number``: another one in each slice."""
    return {"teacher": (3 + number % 3, 3 + number), "student": (11 - number % 2, 12 - number)}


RADIOGRAPH: Cells = {"teacher": (5, 4), "student": (9, 10)}


def place(kind: str, side: str, cell: tuple[int, int]) -> NDArray[np.float64]:
    """Row and column of the centre of a cell on the original pixels, worked out by hand."""
    height, width = SHAPES[kind]
    square = max(height, width)
    row, column = (np.array(cell) + 0.5) / 16 * square
    if side == "L":
        column = square - column
    return np.array([row - (square - height) / 2, column - (square - width) / 2]) - 0.5


def write_studies(folder: Path, make_case: Callable[..., ReviewCase]) -> list[Path]:
    """Export an MR series of the left knee and two radiographs, one of each knee, as the review does."""
    export = DicomExport(folder / "dicom", _run(), "1.0", b"salt")
    files: list[Path] = []
    for number in range(SLICES):
        shared = {"StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.1.1", "FrameOfReferenceUID": "1.2.3.1.2"}
        shared |= {"PatientID": "MR", "SOPInstanceUID": f"1.2.3.1.3.{number}", "InstanceNumber": number + 1}
        position = [40 - 3 * number, -60, 60]
        path = _write(folder, "MR", "L", cells_of(number), ImagePositionPatient=position, **shared)
        case = _case(make_case, path, "L", cells_of(number), number + 1)
        files += export.add(case, read_original(case.source)).files
    for number, side in enumerate("RL"):
        shared = {"StudyInstanceUID": "1.2.3.2", "SeriesInstanceUID": "1.2.3.2.1", "ImageLaterality": side}
        shared |= {"PatientID": "XR", "SOPInstanceUID": f"1.2.3.2.3.{number}", "InstanceNumber": number + 1}
        path = _write(folder, "DX", side, RADIOGRAPH, **shared)
        case = _case(make_case, path, side, RADIOGRAPH, 20 + number)
        files += export.add(case, read_original(case.source)).files
    done = export.finish()
    assert done.left_out == ()
    return [*files, *done.files]


def write_radiographs(folder: Path, make_case: Callable[..., ReviewCase], published: Path) -> list[Path]:
    """Export both knees of one person of the published radiographs, enlarged to 1,120 pixels, with attention on the joint."""
    export = DicomExport(folder / "dicom", _run(), "1.0", b"salt")
    files: list[Path] = []
    right = min(published.glob("test/3/*R.png"))
    y, x = np.mgrid[0:16, 0:16]
    joint = np.exp(-((y - 7.5) ** 2) / 4 - ((x - 7.5) ** 2) / 24).astype(np.float32)
    for number, side in enumerate("RL"):
        (file,) = published.glob(f"test/*/{right.stem[:-1]}{side}.png")
        values = cv2.resize(read_pixels(file).values, None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC)
        image = _KINDS["CR"](np.clip(values * 16, 0, 4095).astype(np.uint16))
        image.PatientID, image.StudyInstanceUID, image.SeriesInstanceUID = "REAL", "1.2.3.4", "1.2.3.4.1"
        image.BitsStored, image.HighBit, image.Laterality, image.InstanceNumber = 12, 11, side, number + 1
        path = folder / f"real_{side}.dcm"
        image.save_as(path, enforce_file_format=True)
        case = _case(make_case, path, side, {"teacher": (7, 7), "student": (7, 7)}, 30 + number)
        views = {network: replace(getattr(case, network), class_map=joint) for network in ("teacher", "student")}
        case = replace(case, **views)
        files += export.add(case, read_original(case.source)).files
    return files


def _run() -> ReviewRun:
    return ReviewRun("painted", "3f9ac2d17be04410", load_grade_set("kl"))


def _write(folder: Path, kind: str, side: str, cells: Cells, **attributes: object) -> Path:
    height, width = SHAPES[kind]
    y, x = np.mgrid[0:height, 0:width]
    values = (300 + 2 * x + y).astype(np.uint16)
    for cell in cells.values():
        row, column = place(kind, side, cell)
        values[(abs(y - row) < _HALF_SIDE) & (abs(x - column) < _HALF_SIDE)] = 3500
    image = _KINDS[kind](values)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    path = folder / f"{kind}_{attributes['InstanceNumber']}.dcm"
    image.save_as(path, enforce_file_format=True)
    return path


def _case(make_case: Callable[..., ReviewCase], path: Path, side: str, cells: Cells, number: int) -> ReviewCase:
    image, geometry = prepare(read_pixels(path).values, 128, mirror=side == "L")
    views = {}
    for network, cell in cells.items():
        attended = np.zeros((16, 16), np.float32)
        attended[cell] = 2.0
        views[network] = replace(getattr(make_case(number), network), class_map=attended)
    return make_case(number, image=image, geometry=geometry, source=path, side=side, cartilage=None, **views)
