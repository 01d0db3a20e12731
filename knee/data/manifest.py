"""The manifest: one CSV row an image. Read with all its faults in one report, and written.

A manifest may name any path that its user writes, through symbolic links and out of its folder too: who writes a path
means it. What a scan of a folder finds is another matter; see ``knee.intake.folders``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knee.errors import Faults, UserError, counted
from knee.grades import GradeSet
from knee.images.slices import is_file, split_slice
from knee.io.files import relative_name, write_text
from knee.io.names import composed
from knee.io.tables import read_rows

REQUIRED = ("image", "patient", "side", "grade", "mask")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and found sound.

    ``table`` has one row an image, numbered from 0: image, patient, side ('L', 'R' or ''), grade (Int64, NA where
    ungraded), mask ('' where there is none), line (in the file), and the columns of the file beside them. Texts are
    kept as written ('007' stays '007'), but patients in one form (``knee.io.names``); spacing_mm, where present, is a float.
    """

    path: Path
    table: pd.DataFrame

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def by_segmenter(self) -> NDArray[np.bool_]:
        """(N,) Which rows' masks were written by a segmenter (column mask_source, where there is one), not drawn."""
        if "mask_source" not in self.table:
            return np.zeros(len(self.table), dtype=bool)
        return self.table["mask_source"].eq("segmenter").to_numpy(dtype=bool)

    def image_path(self, row: int) -> Path:
        """Where the image of row ``row`` lies (with ``#k`` for slice k of a NIfTI volume)."""
        return self.folder / str(self.table["image"].iat[row])

    def mask_path(self, row: int) -> Path | None:
        """Where the mask of row ``row`` lies; None where there is none."""
        mask = str(self.table["mask"].iat[row])
        return self.folder / mask if mask else None

    def named_in(self, folder: Path, name: str) -> str:
        """A path of this manifest's table as a manifest in ``folder`` writes it, so that it leads to the same file.

        An absolute one and an empty one stay; ``volume.nii.gz#7`` keeps its #7; links within the path stay as they are.
        """
        if not name or Path(name).is_absolute():
            return name
        # '..' leads out of where a link leads to, not of where it lies: the folders as they are without links.
        file, index = split_slice(self.folder.resolve() / name)
        if ".." in file.parts:
            file = file.parent.resolve() / file.name
        moved = relative_name(file, folder.resolve())
        return moved if index is None else f"{moved}#{index}"


class BadRow(NamedTuple):
    """One reason why a row of a manifest cannot be used; a row may have several."""

    line: int
    image: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """A manifest as it was found, with everything that is wrong with it."""

    manifest: Manifest
    """Every row that has all its fields, bad ones too (their grade is NA where it is none)."""
    bad: tuple[BadRow, ...]
    """What is wrong with single rows, in the order of the lines; one can go on without these rows."""
    leaks: tuple[BadRow, ...]
    """Patients in two splits, or one person under the names of two: nobody should go on with these."""
    remarks: tuple[str, ...] = ()
    """What is no fault and worth a look, in sentences."""

    @property
    def bad_lines(self) -> frozenset[int]:
        """The lines of the rows that cannot be used."""
        return frozenset(row.line for row in self.bad)

    @property
    def count(self) -> int:
        """How many rows the file has, those that lack a field too."""
        return len(self.bad_lines.union(self.manifest.table["line"].tolist()))

    @property
    def sound(self) -> Manifest:
        """The manifest without its bad rows."""
        table = self.manifest.table
        return replace(self.manifest, table=table[~table["line"].isin(self.bad_lines)].reset_index(drop=True))

    def faults(self) -> list[str]:
        """Every fault with its file and line, in the order of the lines."""
        return self._told(sorted([*self.bad, *self.leaks], key=lambda row: row.line))

    def leak_faults(self) -> list[str]:
        """The leaks alone."""
        return self._told(self.leaks)

    def _told(self, rows: Sequence[BadRow]) -> list[str]:
        return [f"{self.manifest.path.name} line {row.line}: {row.reason}" for row in rows]


def inspect_manifest(path: str | Path, grade_set: GradeSet) -> Inspection:
    """Read a manifest and find what is wrong with its rows; the images are opened by ``knee.data.check.check_data``.

    Raises:
        UserError: not a CSV file with rows; Faults: columns are missing or doubled.
    """
    path = Path(path)
    table, ragged = read_rows(path, REQUIRED)
    table["patient"] = table["patient"].map(composed)
    for column in ("image", "mask"):
        table[column] = [_with_slashes(path.parent, name) for name in table[column]]
    if table.empty and not ragged:
        raise UserError(f"{path}: has a header and no rows; add one row an image")
    bad = [BadRow(row.line, "", row.reason) for row in ragged]
    bad += _row_faults(path, table) + _duplicate_faults(table)
    grades = []
    for line, image, text in zip(table["line"], table["image"], table["grade"], strict=True):
        try:
            grades.append(grade_set.parse(text))
        except UserError as error:
            bad.append(BadRow(line, image, str(error)))
            grades.append(None)
    table["grade"] = pd.array(grades, dtype="Int64")
    bad += _spacing_faults(table)
    bad.sort(key=lambda row: row.line)
    return Inspection(Manifest(path=path, table=table), tuple(bad), tuple(_leaks(table)))


def read_manifest(path: str | Path, grade_set: GradeSet) -> Manifest:
    """Read and check a manifest; the images themselves are opened by ``knee.data.check.check_data``.

    Raises:
        UserError: not a CSV file with rows; Faults: every fault of every row, with its line.
    """
    found = inspect_manifest(path, grade_set)
    faults = found.faults()
    if faults:
        summary = f"{path}: {counted(len(faults), 'fault')}; mend them (dcmt check finds those of the images, too)"
        if any(row.reason.startswith("grade ") for row in found.bad):
            summary += (
                f"; grades are read as those of the set {grade_set.name!r}, --grade-set or data.grade_set names another"
            )
        raise Faults(faults, summary=f"{summary}:")
    return found.manifest


def write_manifest(path: str | Path, table: pd.DataFrame, *, force: bool = False) -> None:
    """Write a manifest's table as CSV (without the ``line`` column); a file that exists is kept unless ``force``.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    write_text(path, table.drop(columns="line", errors="ignore").to_csv(index=False, lineterminator="\n"), force=force)


def _row_faults(path: Path, table: pd.DataFrame) -> list[BadRow]:
    """Faults that one row shows by itself."""
    bad: list[BadRow] = []
    columns = [name for name in (*REQUIRED, "split", "line") if name in table]
    for row in table[columns].to_dict("records"):

        def add(reason: str, line: int = row["line"], image: str = row["image"]) -> None:
            bad.append(BadRow(line, image, reason))

        if not row["image"]:
            add(f"image is empty; write its path, relative to {path.name}")
        for column in ("image", "mask"):
            if row[column] and not is_file(path.parent / row[column]):
                way_out = "mend the path or remove the row" if column == "image" else "mend the path or leave it empty"
                add(f"{column} '{row[column]}' is not a file below {path.parent}; {way_out}")
        if row["side"] not in ("L", "R", ""):
            add(f"side '{row['side']}' is not L, R or empty; {_side_way_out(row['side'])}")
        if not row["patient"]:
            add("patient is empty; write an identifier, the same for all images of a person")
        if row.get("split", "") not in (*SPLITS, ""):
            add(f"split '{row['split']}' is not train, val, test or empty; write one of these")
    return bad


def _with_slashes(folder: Path, name: str) -> str:
    r"""A path as Windows writes it (``images\\7.png``) with slashes, where the file is found only so."""
    if "\\" not in name or is_file(folder / name):
        return name
    other = name.replace("\\", "/")
    return other if is_file(folder / other) else name


def _duplicate_faults(table: pd.DataFrame) -> list[BadRow]:
    """Images that are named twice: the later row is bad; where the rows contradict each other, all of them are."""
    bad = []
    told = [name for name in ("patient", "side", "grade", "mask", "split") if name in table]
    names = table["image"].map(os.path.normpath)
    again = names.duplicated(keep=False) & (table["image"] != "")
    for _, rows in table[again].groupby(names[again], sort=False):
        lines, images = rows["line"].tolist(), rows["image"].tolist()
        differing = [name for name in told if rows[name].nunique() > 1]
        if not differing:
            bad += [
                BadRow(line, image, f"image '{image}' is already on line {lines[0]}; remove one of the two")
                for line, image in zip(lines[1:], images[1:], strict=True)
            ]
            continue
        what = f"with another {' and '.join(differing)}; keep the row that is right"
        bad.append(BadRow(lines[0], images[0], f"image '{images[0]}' is on line {lines[1]} again, {what}"))
        bad += [
            BadRow(line, image, f"image '{image}' is already on line {lines[0]}, {what}")
            for line, image in zip(lines[1:], images[1:], strict=True)
        ]
    return bad


def _side_way_out(side: str) -> str:
    letter = side[:1].upper()
    return f"write {letter}" if side.lower() in ("l", "r", "left", "right") else "write L, R, or leave it empty"


def _spacing_faults(table: pd.DataFrame) -> list[BadRow]:
    """Turn ``spacing_mm``, where there is such a column, into floats (NaN where empty or wrong)."""
    if "spacing_mm" not in table:
        return []
    bad, values = [], []
    for line, image, text in zip(table["line"], table["image"], table["spacing_mm"], strict=True):
        try:
            value = float(text.replace(",", ".")) if text else math.nan
        except ValueError:
            value = math.nan
        if text and not 0 < value < 100:
            bad.append(BadRow(line, image, f"spacing_mm '{text}' is not a size in mm above 0; write e.g. 0.143"))
            value = math.nan
        values.append(value)
    table["spacing_mm"] = values
    return bad


def _leaks(table: pd.DataFrame) -> list[BadRow]:
    """Patients whose rows are in two splits."""
    if "split" not in table:
        return []
    leaks = []
    placed = table[table["split"].isin(SPLITS) & (table["patient"] != "")]
    firsts = placed.drop_duplicates(["patient", "split"])
    for patient, rows in firsts[firsts["patient"].duplicated(keep=False)].groupby("patient", sort=False):
        places = " and ".join(f"{row.split} (line {row.line})" for row in rows.itertuples())
        reason = f"patient '{patient}' is in {places}; put all images of a patient in one split"
        leaks.append(BadRow(rows["line"].tolist()[1], rows["image"].tolist()[1], reason))
    return leaks
