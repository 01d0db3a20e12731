"""A study of small images, DICOM files and spreadsheets that the tests of the intake draw themselves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pydicom
import pytest

from knee.errors import UserError
from knee.grades import load_grade_set
from knee.images.read import write_png
from knee.intake.folders import manifest_from_folder
from knee.intake.sheet import read_sheet

KL = load_grade_set("kl")
RNG = np.random.default_rng(0)
OPTIONS = {"--layout": "layout", "--pattern": "pattern"}


class Study:
    """A folder of images and what ``dcmt manifest`` makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"

    def draw(self, *names: str) -> Study:
        """Write a random picture under each name."""
        for name in names:
            write_png(self.images / name, RNG.integers(0, 256, (8, 8), np.uint8))
        return self

    def draw_dicom(
        self, name: str, *, kind: str = pydicom.uid.DigitalXRayImageStorageForPresentation, **fields: Any
    ) -> Path:
        """Write a DICOM file of class ``kind`` with random pixels."""
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = kind
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = pydicom.uid.generate_uid()
        image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
        image.PixelData = RNG.integers(0, 256, (8, 8), np.uint8).tobytes()
        for field, value in fields.items():
            setattr(image, field, value)
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
        return path

    def csv(self, *lines: str, name: str = "grades.csv") -> Path:
        """Write a spreadsheet as text."""
        (self.folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.folder / name

    def excel(self, *rows: list[Any]) -> Path:
        """Write a spreadsheet as an Excel file."""
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(self.folder / "grades.xlsx")
        return self.folder / "grades.xlsx"

    def table(
        self,
        sheet: Path | None = None,
        *,
        layout: str = "auto",
        pattern: str | None = None,
        slices: Any = None,
        **options: Any,
    ) -> Any:
        """The manifest's table; ``options`` are those of the spreadsheet."""
        read = read_sheet(sheet, KL, **options) if sheet else None
        return manifest_from_folder(
            self.images, layout, pattern=pattern, sheet=read, slices=slices, grade_count=KL.count, grade_names=KL.names
        )

    def column(self, name: str, sheet: Path | None = None, **options: Any) -> dict[str, Any]:
        """A column by image, None where it is empty."""
        table = self.table(sheet, **options)
        return {
            image: None if pd.isna(value) else value for image, value in zip(table["image"], table[name], strict=True)
        }

    def grades(self, sheet: Path | None = None, **options: Any) -> dict[str, int | None]:
        """Grade by image, None where ungraded."""
        return self.column("grade", sheet, **options)

    def refusal(self, sheet: Path | None = None, **options: Any) -> str:
        """The message of the refusal that this ends in."""
        with pytest.raises(UserError) as caught:
            self.table(sheet, **options)
        return str(caught.value)

    def notes(self, sheet: Path | None = None, **options: Any) -> str:
        """What the manifest's table says of how it was made."""
        return " ".join(self.table(sheet, **options).attrs["notes"])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def option():
    """The values of an option that a message prints, as a shell reads them."""

    def values(message: str, name: str) -> list[str]:
        return [
            shlex.split(rest.split("\n")[0].rstrip(".,;:)"))[0].rstrip(".,;:") for rest in message.split(f"{name} ")[1:]
        ]

    return values
