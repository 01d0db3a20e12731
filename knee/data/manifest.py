"""The manifest: a CSV file with one row per image. Reading it reports all its errors at once.

A manifest may name any path, also through symbolic links and outside its folder, because its user wrote the path
deliberately. Scanning a folder is stricter; see ``knee.intake.scan``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knee.errors import Faults, UserError, counted
from knee.grades import GradeSet
from knee.images.slices import is_file, split_slice
from knee.io.files import existing_files, normal_paths, paths_below, relative_name, write_text
from knee.io.names import composed
from knee.io.tables import read_rows

REQUIRED = ("image", "patient", "side", "grade", "mask")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """A valid manifest.

    ``table`` has one row per image, numbered from 0: image, patient, side ('L', 'R' or ''), grade (Int64, NA if
    ungraded), mask ('' if there is none), line (in the file), and any further columns of the file. Text is kept as
    written ('007' stays '007'), except that patients are in normalized Unicode (``knee.io.names``); spacing_mm, if
    present, is a float.
    """

    path: Path
    table: pd.DataFrame

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to."""
        return self.path.parent

    @property
    def by_segmenter(self) -> NDArray[np.bool_]:
        """(N,) Which rows' masks were predicted by a segmenter rather than drawn (column mask_source, if present)."""
        if "mask_source" not in self.table:
            return np.zeros(len(self.table), dtype=bool)
        return self.table["mask_source"].eq("segmenter").to_numpy(dtype=bool)

    def image_path(self, row: int) -> Path:
        """The path of row ``row``'s image (with ``#k`` for slice k of a NIfTI volume)."""
        return self.folder / str(self.table["image"].iat[row])

    def mask_path(self, row: int) -> Path | None:
        """The path of row ``row``'s mask; None if there is none."""
        mask = str(self.table["mask"].iat[row])
        return self.folder / mask if mask else None

    def paths(self, column: str) -> list[str]:
        """The paths of all images, or masks ('' for none), as text: a million ``Path`` objects take a gigabyte."""
        return paths_below(self.folder, texts(self.table[column]))

    def named_in(self, folder: Path, name: str) -> str:
        """A path of this manifest's table, rewritten for a manifest in ``folder`` so that it names the same file.

        Absolute and empty paths are unchanged; ``volume.nii.gz#7`` keeps its #7; links within the path are kept.
        """
        if not name or Path(name).is_absolute():
            return name
        # '..' is the parent of a link's target, not of the link: resolve the folders first.
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
    """A manifest with all its errors."""

    manifest: Manifest
    """Every row that has all its fields, including bad rows (an invalid grade is NA)."""
    bad: tuple[BadRow, ...]
    """Errors of single rows, in the order of the lines; these rows can be left out."""
    leaks: tuple[BadRow, ...]
    """Patients in two splits, or one person under two names: errors that leaving out a row does not fix."""
    remarks: tuple[str, ...] = ()
    """Findings that are not errors but deserve attention, in sentences."""

    @property
    def bad_lines(self) -> frozenset[int]:
        """The lines of the rows that cannot be used."""
        return frozenset(row.line for row in self.bad)

    @property
    def count(self) -> int:
        """How many rows the file has, including those that lack a field."""
        return len(self.bad_lines.union(self.manifest.table["line"].tolist()))

    @property
    def valid(self) -> Manifest:
        """The manifest without its bad rows."""
        table = self.manifest.table
        return replace(self.manifest, table=table[~table["line"].isin(self.bad_lines)].reset_index(drop=True))

    def faults(self) -> list[str]:
        """Every error with its file and line, in the order of the lines."""
        return self._with_lines(sorted([*self.bad, *self.leaks], key=lambda row: row.line))

    def leak_faults(self) -> list[str]:
        """The leaks, with their file and line."""
        return self._with_lines(self.leaks)

    def _with_lines(self, rows: Sequence[BadRow]) -> list[str]:
        return [f"{self.manifest.path.name} line {row.line}: {row.reason}" for row in rows]


def inspect_manifest(path: str | Path, grade_set: GradeSet) -> Inspection:
    """Read a manifest and find the errors of its rows; ``knee.data.check.check_data`` checks the images, too.

    Raises:
        UserError: not a CSV file with rows; Faults: columns are missing or occur twice.
    """
    path = Path(path)
    table, ragged = read_rows(path, REQUIRED)
    table["patient"] = table["patient"].map({patient: composed(patient) for patient in table["patient"].unique()})
    for column in ("image", "mask"):
        names = texts(table[column])
        if any("\\" in name for name in names):
            table[column] = [_with_slashes(path.parent, name) for name in names]
    if table.empty and not ragged:
        raise UserError(f"{path}: has a header and no rows; add one row per image")
    bad = [BadRow(row.line, "", row.reason) for row in ragged]
    bad += _row_faults(path, table) + _duplicate_faults(table)
    bad += _parse_grades(table, grade_set)
    bad += _spacing_faults(table)
    bad += _series_faults(table)
    bad.sort(key=lambda row: row.line)
    return Inspection(Manifest(path=path, table=table), tuple(bad), tuple(_leaks(table)))


def read_manifest(path: str | Path, grade_set: GradeSet) -> Manifest:
    """Read and check a manifest; ``knee.data.check.check_data`` checks the images, too.

    Raises:
        UserError: not a CSV file with rows; Faults: every error of every row, with its line.
    """
    found = inspect_manifest(path, grade_set)
    faults = found.faults()
    if faults:
        summary = f"{path}: {counted(len(faults), 'error')}; fix them (dcmt check also finds errors in the images)"
        if any(row.reason.startswith("grade ") for row in found.bad):
            summary += (
                f"; grades are read as those of {grade_set.name!r}; --grade-set or data.grade_set selects another set"
            )
        raise Faults(faults, summary=f"{summary}:")
    return found.manifest


def write_manifest(path: str | Path, table: pd.DataFrame, *, force: bool = False) -> None:
    """Write a manifest's table as CSV (without the ``line`` column); an existing file is kept unless ``force``.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    write_text(path, table.drop(columns="line", errors="ignore").to_csv(index=False, lineterminator="\n"), force=force)


def _row_faults(path: Path, table: pd.DataFrame) -> list[BadRow]:
    """Errors that can be found from one row alone."""
    bad: list[BadRow] = []
    if "split" not in table:
        table = table.assign(split="")
    suspicious = ~(table["side"].isin(("L", "R", "")) & table["patient"].ne("") & table["split"].isin((*SPLITS, "")))
    images, masks = (paths_below(path.parent, texts(table[column])) for column in ("image", "mask"))
    files = existing_files([*images, *filter(None, masks)])
    suspicious |= np.array([name not in files and not is_file(name) for name in images], bool)
    suspicious |= np.array([bool(name) and name not in files and not is_file(name) for name in masks], bool)
    columns = ["line", *REQUIRED[:3], "mask", "split"]
    for line, image, patient, side, mask, split in table.loc[suspicious, columns].itertuples(index=False):
        reasons = [] if image else [f"image is empty; write its path, relative to {path.name}"]
        for column, name in (("image", image), ("mask", mask)):
            if name and not is_file(path.parent / name):
                hint = "fix the path or remove the row" if column == "image" else "fix the path or leave it empty"
                reasons.append(f"{column} '{name}' is not a file below {path.parent}; {hint}")
        if side not in ("L", "R", ""):
            reasons.append(f"side '{side}' is not L, R or empty; {_side_hint(side)}")
        if not patient:
            reasons.append("patient is empty; write an identifier, the same for all images of a person")
        if split not in (*SPLITS, ""):
            reasons.append(f"split '{split}' is not train, val, test or empty; write one of these")
        bad += [BadRow(line, image, reason) for reason in reasons]
    return bad


def texts(column: pd.Series) -> list[str]:
    """The values of a column of text as a list: much faster than iterating over the column."""
    found: list[str] = column.to_numpy(dtype=object).tolist()
    return found


def parsed_grades(column: pd.Series, grade_set: GradeSet) -> tuple[Any, dict[str, str]]:
    """A column of text as whole numbers (Int64, NA if empty or invalid), and why a text is invalid."""
    parsed: dict[str, int | None] = {}
    reasons: dict[str, str] = {}
    for text in texts(column.drop_duplicates()):
        try:
            parsed[text] = grade_set.parse(text)
        except UserError as error:
            parsed[text], reasons[text] = None, str(error)
    return pd.array([parsed[text] for text in texts(column)], dtype="Int64"), reasons


def _parse_grades(table: pd.DataFrame, grade_set: GradeSet) -> list[BadRow]:
    """Convert the column ``grade`` to whole numbers, NA if empty or invalid."""
    grades, reasons = parsed_grades(table["grade"], grade_set)
    wrong = table.loc[table["grade"].isin(list(reasons)), ["line", "image", "grade"]]
    table["grade"] = grades
    return [BadRow(line, image, reasons[text]) for line, image, text in wrong.itertuples(index=False)]


def _with_slashes(folder: Path, name: str) -> str:
    r"""A path as Windows writes it (``images\\7.png``) with forward slashes, if the file is found only that way."""
    if "\\" not in name or is_file(folder / name):
        return name
    other = name.replace("\\", "/")
    return other if is_file(folder / other) else name


def _duplicate_faults(table: pd.DataFrame) -> list[BadRow]:
    """Images listed twice: the later row is bad; if the rows contradict each other, all of them are bad."""
    bad = []
    facts = [name for name in ("patient", "side", "grade", "mask", "split") if name in table]
    normal = normal_paths(texts(table["image"]))
    if len(set(normal)) == len(normal):
        return []
    names = pd.Series(normal, index=table.index, dtype=object)
    again = names.duplicated(keep=False) & (table["image"] != "")
    for _, rows in table[again].groupby(names[again], sort=False):
        lines, images = rows["line"].tolist(), rows["image"].tolist()
        differing = [name for name in facts if rows[name].nunique() > 1]
        if not differing:
            bad += [
                BadRow(line, image, f"image '{image}' is already on line {lines[0]}; remove one of the two")
                for line, image in zip(lines[1:], images[1:], strict=True)
            ]
            continue
        what = f"with another {' and '.join(differing)}; keep the correct row"
        bad.append(BadRow(lines[0], images[0], f"image '{images[0]}' is on line {lines[1]} again, {what}"))
        bad += [
            BadRow(line, image, f"image '{image}' is already on line {lines[0]}, {what}")
            for line, image in zip(lines[1:], images[1:], strict=True)
        ]
    return bad


def _side_hint(side: str) -> str:
    letter = side[:1].upper()
    return f"write {letter}" if side.lower() in ("l", "r", "left", "right") else "write L, R, or leave it empty"


def _spacing_faults(table: pd.DataFrame) -> list[BadRow]:
    """Convert the column ``spacing_mm``, if there is one, to floats (NaN if empty or invalid)."""
    if "spacing_mm" not in table:
        return []
    bad, values = [], []
    for line, image, text in zip(table["line"], *map(texts, (table["image"], table["spacing_mm"])), strict=True):
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


def _series_faults(table: pd.DataFrame) -> list[BadRow]:
    """Slices of one series with another patient, side or visit than its first slice."""
    if "series" not in table:
        return []
    bad = []
    facts = [name for name in ("patient", "side", "visit") if name in table]
    slices = table[table["series"] != ""]
    firsts = slices.groupby("series", sort=False)[[*facts, "line"]].transform("first")
    wrong = slices[facts].ne(firsts[facts]).any(axis="columns")
    for row, first in zip(slices[wrong].to_dict("records"), firsts[wrong].to_dict("records"), strict=True):
        differing = [name for name in facts if row[name] != first[name]]
        reason = (
            f"series '{row['series']}' has another {' and '.join(differing)} than on line {first['line']}; a series is one "
            "volume of one knee"
        )
        bad.append(BadRow(row["line"], row["image"], reason))
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
