"""Grades that are kept in a spreadsheet: its columns and fields, read as people write them.

A grade given to the wrong knee is worse than none: what a sheet leaves open is refused with the option that decides it.
``knee.intake.sheet_join`` gives the grades to the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from knee.errors import Faults, UserError, counted, pasted, quoted
from knee.grades import GradeSet
from knee.intake.columns import find_columns, place_of, reader_column, visit_of_title
from knee.intake.rows import Entry, RowReader
from knee.io.excel import EXCEL, OTHER_SPREADSHEETS, read_excel_rows
from knee.io.tables import read_csv_rows

_MOST_VALUES = 5
_OAI_FILE = re.compile(r"kxr_sq_bu[0-9]{2}.*", re.IGNORECASE)
_OAI_SIDES = {"1": "R", "2": "L"}

Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Sheet:
    """A spreadsheet of grades that was read without a fault."""

    path: Path
    columns: dict[str, str]
    """Which column (by its header) is what."""
    entries: tuple[Entry, ...]
    one_knee: bool = False
    """Whether it was said that no column is the side: a patient's grade is of the knee that is shown."""
    any_visit: bool = False
    """Whether it was said that no column is the visit: a grade is of the knee at all visits."""
    prefer: str = ""
    """The option that states a priority of the sheet's readers, '' where it names none."""

    @property
    def names_images(self) -> bool:
        """Whether rows are of images; otherwise of patients, or of their knees."""
        return "image" in self.columns

    @property
    def has_sides(self) -> bool:
        """Whether rows tell the two knees of a patient apart."""
        return "side" in self.columns or "grade" not in self.columns or any(entry.side for entry in self.entries)

    @property
    def has_visits(self) -> bool:
        """Whether rows tell the visits of a patient apart."""
        return any(entry.visit for entry in self.entries)


def read_sheet(
    path: str | Path,
    grade_set: GradeSet,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    sides: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
    only: Mapping[str, str] | None = None,
    prefer: Mapping[str, Sequence[str]] | None = None,
) -> Sheet:
    """Read grades from a CSV or Excel file.

    The header is the first row with two filled fields. Columns are known by their usual names, in any case: image or file;
    patient or ID; side; visit; split; grade or KL; or, with a row a patient, KL_left and KL_right. In files of the OAI
    (``kxr_sq_bu00.txt``, or grades in ``V00XRKL``) side 1 is right, and the grade is of the visit in the column's name.

    Args:
        name: which sheet of the file (default: the only one).
        columns: header by role (``knee.intake.columns``), before what the names tell; '' for none.
        sides: 'L' or 'R' by what the sheet writes instead of left and right.
        missing: what the sheet writes for 'not graded', beside '.', '-', 'NA' and nothing.
        only: take the rows that have these values, by header.
        prefer: by header, the values whose rows come first where a knee has several grades, the best one first.

    Raises:
        UserError: unreadable, or a column cannot be told; Faults: all fields that are no grade or no side.
    """
    path = Path(path)
    header, rows = _header_and_rows(path, name)
    roles = find_columns(path, header, columns or {}, kl=grade_set.name == "kl")
    for column, value in (only or {}).items():
        rows = _rows_with(path, rows, place_of(path, header, column), column, value)
    order = {place_of(path, header, column): list(values) for column, values in (prefer or {}).items()}
    grade = header[roles["grade"]] if "grade" in roles else ""
    sides = _sides(path, grade, dict(sides or {}))
    visit = visit_of_title(grade) if "visit" not in {**roles, **(columns or {})} else ""
    reader = RowReader(roles, grade_set, sides, {value.casefold() for value in missing}, visit, order)
    return Sheet(
        path,
        {role: header[place] for role, place in roles.items()},
        tuple(_preferred(_entries(path, rows, reader))),
        one_knee=(columns or {}).get("side") == "",
        any_visit=(columns or {}).get("visit") == "",
        prefer=_prefer_option(header, rows),
    )


def _entries(path: Path, rows: Sequence[Row], reader: RowReader) -> list[Entry]:
    faults: list[str] = []
    entries: list[Entry] = []
    for number, fields in rows:
        try:
            entries += reader.entries(number, fields)
        except UserError as error:
            faults.append(f"{path.name} row {number}: {error}")
    _refuse(path, faults)
    return entries


def _sides(path: Path, grade: str, sides: dict[str, str]) -> dict[str, str]:
    """What stands for left and right: as said, and as OAI has it in its files."""
    if not (_OAI_FILE.fullmatch(path.name) or visit_of_title(grade)):
        return sides
    wrong = next((value for value, side in sides.items() if _OAI_SIDES.get(value, side) != side), None)
    if wrong is not None:
        raise UserError(
            f"{path}: in files of the OAI side 1 is right and 2 is left; leave out --side {wrong}={sides[wrong]}"
        )
    return _OAI_SIDES | sides


def _prefer_option(header: list[str], rows: Sequence[Row]) -> str:
    place = reader_column(header)
    values = list(dict.fromkeys(fields[place] for _, fields in rows if fields[place])) if place is not None else []
    if place is None or len(values) < 2 or any("," in value for value in values):
        return ""
    return "--prefer " + pasted(f"{header[place]}={','.join(values)}")


def _preferred(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries without the graded ones of a knee (or image) that come behind another of it."""
    best: dict[tuple[str, ...], int] = {}
    for entry in entries:
        if entry.grade is not None:
            key = (entry.image, entry.patient, entry.side, entry.visit)
            best[key] = min(entry.priority, best.get(key, entry.priority))
    for entry in entries:
        behind = entry.priority > best.get((entry.image, entry.patient, entry.side, entry.visit), entry.priority)
        yield entry._replace(grade=None) if behind else entry


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
        raise Faults(faults, summary=f"{path}: {counted(len(faults), 'row')} cannot be used; mend them:")


def _rows_with(path: Path, rows: list[Row], place: int, column: str, value: str) -> list[Row]:
    found = [(number, fields) for number, fields in rows if fields[place] == value]
    if not found:
        values = quoted(list(dict.fromkeys(fields[place] for _, fields in rows))[:_MOST_VALUES])
        raise UserError(f"{path}: no row has '{value}' in the column '{column}', but {values}; see --only")
    return found
