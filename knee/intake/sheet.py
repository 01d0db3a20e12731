"""Grades that are kept in a spreadsheet: its columns and fields, read as people write them.

A grade given to the wrong knee is worse than none: what a sheet leaves open is refused with the option that decides it.
``knee.intake.sheet_join`` gives the grades to the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from knee.errors import Faults, UserError, counted, quoted
from knee.grades import GradeSet
from knee.intake.columns import find_columns, place_of
from knee.intake.patients import SIDES
from knee.io.excel import EXCEL, OTHER_SPREADSHEETS, read_excel_rows
from knee.io.names import composed
from knee.io.tables import read_csv_rows, shortened

_SIDE_VALUE = re.compile(r"(?:[0-9]\s*[:=]\s*)?(l|left|r|right)", re.IGNORECASE)
_NO_GRADE = re.compile(r"(?:\.[a-z]?(?:\s*:.*)?|[-–—]|na|n/a|nan|missing)?", re.IGNORECASE)
_GRADE_PREFIX = re.compile(r"^(?:kl|klg|grade|kl[- ]grade|k[-/&]l)(?:-|[: ]*)(?=[0-9])", re.IGNORECASE)
_MOST_VALUES = 5

Row = tuple[int, list[str]]


class Entry(NamedTuple):
    """What a row says of one knee, or of one image."""

    row: int
    """As the spreadsheet program numbers it (in CSV, the line)."""
    image: str
    patient: str
    side: str
    grade: int | None


@dataclass(frozen=True)
class Sheet:
    """A spreadsheet of grades that was read without a fault."""

    path: Path
    columns: dict[str, str]
    """Which column (by its header) is what."""
    entries: tuple[Entry, ...]
    one_knee: bool = False
    """Whether it was said that no column is the side: a patient's grade is of the knee that is shown."""

    @property
    def names_images(self) -> bool:
        """Whether rows are of images; otherwise of patients, or of their knees."""
        return "image" in self.columns

    @property
    def has_sides(self) -> bool:
        """Whether rows tell the two knees of a patient apart."""
        return "side" in self.columns or "grade" not in self.columns


def read_sheet(
    path: str | Path,
    grade_set: GradeSet,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    sides: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
    only: Mapping[str, str] | None = None,
) -> Sheet:
    """Read grades from a CSV or Excel file.

    The header is the first row with two filled fields. Columns are known by their usual names, in any case: image or file;
    patient or ID; side; grade or KL; or, with a row a patient, KL_left and KL_right.

    Args:
        name: which sheet of the file (default: the only one).
        columns: header by role (``knee.intake.columns``), before what the names tell; '' for none.
        sides: 'L' or 'R' by what the sheet writes instead of left and right.
        missing: what the sheet writes for 'not graded', beside '.', '-', 'NA' and nothing.
        only: take the rows that have these values, by header.

    Raises:
        UserError: unreadable, or a column cannot be told; Faults: all fields that are no grade or no side.
    """
    path = Path(path)
    header, rows = _header_and_rows(path, name)
    roles = find_columns(path, header, columns or {}, kl=grade_set.name == "kl")
    for column, value in (only or {}).items():
        rows = _rows_with(path, rows, place_of(path, header, column), column, value)
    reader = _Reader(roles, grade_set, dict(sides or {}), {value.casefold() for value in missing})
    faults: list[str] = []
    entries: list[Entry] = []
    for number, fields in rows:
        try:
            entries += reader.entries(number, fields)
        except UserError as error:
            faults.append(f"{path.name} row {number}: {error}")
    _refuse(path, faults)
    one_knee = (columns or {}).get("side") == ""
    return Sheet(path, {role: header[place] for role, place in roles.items()}, tuple(entries), one_knee)


def _header_and_rows(path: Path, name: str | None) -> tuple[list[str], list[Row]]:
    """The titles, and the rows below them with as many fields."""
    suffix = path.suffix.lower()
    if suffix in OTHER_SPREADSHEETS:
        raise UserError(f"{path}: {suffix} files are not read; save it as .xlsx or as 'CSV UTF-8'")
    if suffix in EXCEL:
        table = read_excel_rows(path, name)
    elif name is not None:
        raise UserError(f"{path}: is not an Excel file ({', '.join(EXCEL)}), so it has no sheets; leave out --sheet")
    else:
        first, rest = read_csv_rows(path, ("patient", "side", "grade"))
        table = [(1, first), *rest]
    start = next((place for place, (_, fields) in enumerate(table) if sum(map(bool, fields)) > 1), None)
    if start is None:
        raise UserError(f"{path}: has no row of two columns; its header should name them, such as patient, side, grade")
    header, rows = table[start][1], table[start + 1 :]
    if not rows:
        raise UserError(f"{path}: has a header and no rows")
    if suffix not in EXCEL:
        _refuse_ragged(path, header, rows)
    width = len(header)
    return header, [(number, (fields + [""] * width)[:width]) for number, fields in rows]


def _refuse_ragged(path: Path, header: list[str], rows: Sequence[Row]) -> None:
    """Refuse rows of a CSV file that end before the last title, or go on behind the header."""
    least = max(place for place, title in enumerate(header, start=1) if title)
    faults = [
        f"{path.name} row {number}: {counted(len(fields), 'field')} where the header has {len(header)}; put quotation marks "
        "around a field that holds a separator, or delete the row"
        for number, fields in rows
        if len(fields) < least or any(fields[len(header) :])
    ]
    _refuse(path, faults)


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'row')} cannot be used; mend them:")


def _rows_with(path: Path, rows: list[Row], place: int, column: str, value: str) -> list[Row]:
    found = [(number, fields) for number, fields in rows if fields[place] == value]
    if not found:
        values = quoted(list(dict.fromkeys(fields[place] for _, fields in rows))[:_MOST_VALUES])
        raise UserError(f"{path}: no row has '{value}' in the column '{column}', but {values}; see --only")
    return found


class _Reader(NamedTuple):
    """How the fields of a row are read."""

    roles: dict[str, int]
    grade_set: GradeSet
    sides: dict[str, str]
    missing: set[str]

    def entries(self, number: int, fields: Sequence[str]) -> Iterator[Entry]:
        """What a row says; nothing where it names neither image nor patient, and has no grade."""
        image, patient = self._text("image", fields), composed(self._text("patient", fields))
        given = [role for role in ("grade", "grade_L", "grade_R") if role in self.roles]
        if not (image or patient):
            if not all(self._is_missing(self._text(role, fields)) for role in given):
                raise UserError(
                    "has a grade and names neither image nor patient; write whose it is (of merged cells only the first has "
                    "the text), or delete the row"
                )
            return
        for role in given:
            grade = self._grade(self._text(role, fields))
            side = role[-1] if role != "grade" else self._side(self._text("side", fields))
            if "side" in self.roles and not (side or image) and grade is not None:
                raise UserError("the side is empty; write which knee this is")
            yield Entry(number, image.replace("\\", "/").removeprefix("./"), patient, side, grade)

    def _text(self, role: str, fields: Sequence[str]) -> str:
        return fields[self.roles[role]] if role in self.roles else ""

    def _is_missing(self, text: str) -> bool:
        return text.casefold() in self.missing or _NO_GRADE.fullmatch(text) is not None

    def _grade(self, text: str) -> int | None:
        if self._is_missing(text):
            return None
        try:
            return self.grade_set.parse(_GRADE_PREFIX.sub("", text, count=1))
        except UserError as error:
            raise UserError(f"{error}; --missing '{text}' takes it for not graded") from error

    def _side(self, text: str) -> str:
        if text in self.sides:
            return self.sides[text]
        match = _SIDE_VALUE.fullmatch(text)
        if not (match or not text):
            raise UserError(f"side '{text}' is not left or right; say what it means by --side '{text}=R' (or =L)")
        return SIDES[match[1].lower()] if match else ""
