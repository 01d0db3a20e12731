"""The manifest: one CSV row an image. Read with all its faults in one report, and written."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from knee.errors import Faults, UserError
from knee.folders import manifest_from_folder
from knee.grades import GradeSet
from knee.tables import read_table, shortened, write_text

__all__ = ["Manifest", "manifest_from_folder", "read_manifest", "split_slice", "write_manifest"]

REQUIRED = ("image", "patient", "side", "grade", "mask")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and found sound.

    ``table`` has one row an image, numbered from 0: image, patient, side ('L', 'R' or ''), grade (Int64, NA where
    ungraded), mask ('' where there is none), line (in the file), and the columns of the file beside them. Texts are
    kept as written ('007' stays '007'); spacing_mm, where present, is a float.
    """

    path: Path
    table: pd.DataFrame

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    def image_path(self, row: int) -> Path:
        """Where the image of row ``row`` lies (with ``#k`` for slice k of a NIfTI volume)."""
        return self.folder / str(self.table["image"].iat[row])

    def mask_path(self, row: int) -> Path | None:
        """Where the mask of row ``row`` lies; None where there is none."""
        mask = str(self.table["mask"].iat[row])
        return self.folder / mask if mask else None


def split_slice(path: str | Path) -> tuple[Path, int | None]:
    """The file and the slice of ``volume.nii.gz#7``; the slice is None where none is named.

    >>> split_slice("scan.nii.gz#7")[1]
    7
    """
    name = str(path)
    stem, mark, digits = name.rpartition("#")
    if not mark or not digits.isdecimal() or len(digits) > 6 or not stem or Path(name).exists():
        return Path(name), None
    return Path(stem), int(digits)


def read_manifest(path: str | Path, grade_set: GradeSet) -> Manifest:
    """Read and check a manifest; the images themselves are opened by ``knee.check.check_images``.

    Raises:
        UserError: not a CSV file with rows; Faults: every fault of every row, with its line.
    """
    path = Path(path)
    table, faults = read_table(path, REQUIRED)
    if table.empty and not faults:
        raise UserError(f"{path}: has a header and no rows; add one row an image")
    faults += _row_faults(path, table)
    grades = []
    for line, text in zip(table["line"], table["grade"], strict=True):
        try:
            grades.append(grade_set.parse(text))
        except UserError as error:
            faults.append(f"{path.name} line {line}: {error}")
            grades.append(None)
    table["grade"] = pd.array(grades, dtype="Int64")
    faults += _spacing_faults(path, table) + _leak_faults(path, table)
    if faults:
        raise Faults(
            shortened(_in_line_order(faults)), summary=f"{path}: {len(faults)} faults; mend them and run again"
        )
    return Manifest(path=path, table=table)


def write_manifest(path: str | Path, table: pd.DataFrame, *, force: bool = False) -> None:
    """Write a manifest's table as CSV (without the ``line`` column); a file that exists is kept unless ``force``.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    write_text(path, table.drop(columns="line", errors="ignore").to_csv(index=False, lineterminator="\n"), force=force)


def _row_faults(path: Path, table: pd.DataFrame) -> list[str]:
    """Faults that one row shows by itself, and duplicates."""
    faults: list[str] = []
    seen: dict[str, int] = {}
    for row in table.to_dict("records"):
        at = f"{path.name} line {row['line']}:"
        name = os.path.normpath(row["image"])
        if row["image"] and name in seen:
            faults.append(f"{at} image '{row['image']}' is already on line {seen[name]}; remove one of the two")
        elif not row["image"]:
            faults.append(f"{at} image is empty; write its path, relative to {path.name}")
        seen.setdefault(name, int(row["line"]))
        for column in ("image", "mask"):
            if row[column] and not split_slice(path.parent / row[column])[0].is_file():
                way_out = "mend the path or remove the row" if column == "image" else "mend the path or leave it empty"
                faults.append(f"{at} {column} '{row[column]}' is not a file below {path.parent}; {way_out}")
        if row["side"] not in ("L", "R", ""):
            faults.append(f"{at} side '{row['side']}' is not L, R or empty; {_side_way_out(row['side'])}")
        if not row["patient"]:
            faults.append(f"{at} patient is empty; write an identifier, the same for all images of a person")
        if row.get("split", "") not in (*SPLITS, ""):
            faults.append(f"{at} split '{row['split']}' is not train, val, test or empty; write one of these")
    return faults


def _side_way_out(side: str) -> str:
    letter = side[:1].upper()
    return f"write {letter}" if side.lower() in ("l", "r", "left", "right") else "write L, R, or leave it empty"


def _spacing_faults(path: Path, table: pd.DataFrame) -> list[str]:
    """Turn ``spacing_mm``, where there is such a column, into floats (NaN where empty)."""
    if "spacing_mm" not in table:
        return []
    faults, values = [], []
    for line, text in zip(table["line"], table["spacing_mm"], strict=True):
        try:
            value = float(text.replace(",", ".")) if text else math.nan
        except ValueError:
            value = -1.0
        if text and not 0 < value < 100:
            faults.append(f"{path.name} line {line}: spacing_mm '{text}' is not a size in mm above 0; write e.g. 0.143")
        values.append(value)
    table["spacing_mm"] = values
    return faults


def _leak_faults(path: Path, table: pd.DataFrame) -> list[str]:
    """Patients whose rows are in two splits."""
    if "split" not in table:
        return []
    faults = []
    placed = table[(table["split"] != "") & (table["patient"] != "")]
    firsts = placed.drop_duplicates(["patient", "split"])
    for patient, rows in firsts[firsts["patient"].duplicated(keep=False)].groupby("patient", sort=False):
        places = " and ".join(f"{row.split} (line {row.line})" for row in rows.itertuples())
        faults.append(
            f"{path.name} line {rows['line'].iat[1]}: patient '{patient}' is in {places}; "
            "put all images of a patient in one split"
        )
    return faults


def _in_line_order(faults: list[str]) -> list[str]:
    return sorted(faults, key=lambda fault: int(match[1]) if (match := re.search(r" line (\d+):", fault)) else 0)
