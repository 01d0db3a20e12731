"""Read grades from a spreadsheet, with columns and fields as people write them.

A grade assigned to the wrong knee is worse than none, so an ambiguous sheet is an error whose message gives the option that
resolves it. ``knee.intake.sheet_join`` assigns the grades to the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from knee.errors import Faults, UserError, counted, pasted, quoted
from knee.grades import GradeSet
from knee.intake.columns import find_columns, is_grade_column, place_of, reader_column, visit_of_title
from knee.intake.rows import Entry, RowReader
from knee.io.excel import EXCEL, OTHER_SPREADSHEETS, read_excel_rows
from knee.io.tables import read_csv_rows

_MOST_VALUES = 5
_OAI_FILE = re.compile(r"kxr_sq_bu[0-9]{2}.*", re.IGNORECASE)
_OF_THE_MANIFEST = (
    *("image", "patient", "side", "grade", "mask", "mask_source", "split", "visit", "series", "spacing_mm", "line"),
    *("report", "label", "date"),
)
_OAI_SIDES = {"1": "R", "2": "L"}

Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Sheet:
    """A valid spreadsheet of grades."""

    path: Path
    columns: dict[str, str]
    """The header of each role's column."""
    entries: tuple[Entry, ...]
    one_knee: bool = False
    """Whether the user declared that there is no side column: a patient's grade is that of the knee in the image."""
    any_visit: bool = False
    """Whether the user declared that there is no visit column: a knee has the same grade at all visits."""
    prefer: str = ""
    """The option that gives a priority of the sheet's readers, '' if the sheet names none."""
    texts: tuple[str, ...] = ()
    """The manifest's columns for the ``texts`` of the entries."""

    @property
    def names_images(self) -> bool:
        """Whether each row describes an image; otherwise it describes a patient or a knee."""
        return "image" in self.columns

    @property
    def has_sides(self) -> bool:
        """Whether rows distinguish the two knees of a patient."""
        sided = self.columns.keys() & {"side", "grade_L", "grade_R"}
        return bool(sided) or any(entry.side for entry in self.entries)

    @property
    def has_visits(self) -> bool:
        """Whether rows distinguish the visits of a patient."""
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
    report: str | None = None,
    table: Sequence[str] = (),
) -> Sheet:
    """Read grades from a CSV or Excel file.

    The header is the first row with two filled fields. Columns are recognized by their usual names, in any case: image or
    file; patient or ID; side; visit; split; grade or KL; or, with one row per patient, KL_left and KL_right. In files of
    the OAI (``kxr_sq_bu00.txt``, or grades in ``V00XRKL``) side 1 is right; there and in those of MOST (``V0XRKLL`` and
    ``V0XRKLR``) the visit is that in the column's name.

    Args:
        name: which sheet of the file (default: the only one).
        columns: header by role (``knee.intake.columns``); overrides the usual names; '' for no column.
        sides: 'L' or 'R' for each text that the sheet uses instead of left and right.
        missing: texts that the sheet uses for 'not graded', in addition to '.', '-', 'NA' and an empty field.
        only: use only the rows with these values, by header.
        prefer: by header, the values whose rows take precedence if a knee has several grades, best first.
        report: the header of the column with the reports; such a sheet may have no grades.
        table: headers of further columns that the manifest gets, such as age and sex.

    Raises:
        UserError: unreadable, or a column cannot be identified, or one of ``table`` holds grades; Faults: all invalid grades
            and sides.
    """
    path = Path(path)
    header, rows = _header_and_rows(path, name)
    further = _further_columns(path, header, report, table)
    ungraded = bool(further) and (columns or {}).get("grade") == ""
    roles = find_columns(path, header, columns or {}, kl=grade_set.name == "kl", ungraded=ungraded)
    for column, value in (only or {}).items():
        rows = _rows_with(path, rows, place_of(path, header, column), column, value)
    order = {place_of(path, header, column): list(values) for column, values in (prefer or {}).items()}
    grade = header[roles["grade"]] if "grade" in roles else ""
    sides = _sides(path, grade, dict(sides or {}))
    visits = {visit_of_title(header[place]) for role, place in roles.items() if role.startswith("grade")}
    if len(visits) > 1:
        raise UserError(
            f"{path}: the grades of left and right knees are of different visits; give columns of one visit"
        )
    visit = "" if not visits or "visit" in {**roles, **(columns or {})} else visits.pop()
    no_grade = {value.casefold() for value in missing}
    reader = RowReader(roles, grade_set, sides, no_grade, visit, order, tuple(further.values()))
    return Sheet(
        path,
        {role: header[place] for role, place in roles.items()},
        tuple(_preferred(_entries(path, rows, reader))),
        one_knee=(columns or {}).get("side") == "",
        any_visit=(columns or {}).get("visit") == "",
        prefer=_prefer_option(header, rows),
        texts=tuple(further),
    )


def _further_columns(path: Path, header: list[str], report: str | None, table: Sequence[str]) -> dict[str, int]:
    """The index of the report's column and of further ones, by their names in the manifest. Raises UserError."""
    wanted = {name: name for name in table} | ({"report": report} if report else {})
    for name in table:
        if is_grade_column(name):
            raise UserError(
                f"--table {pasted(name)}: a grade, or a finding that determines it, is no input; give it as the grade, or "
                "leave it out"
            )
        if name.lower() in _OF_THE_MANIFEST:
            raise UserError(f"--table {pasted(name)}: the manifest has a column of this name; rename the sheet's")
    return {name: place_of(path, header, title) for name, title in wanted.items()}


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
    """The texts for left and right: those given, and the codes of OAI files."""
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
    """The entries, with the grade removed where another graded entry of the same knee (or image) has priority."""
    best: dict[tuple[str, ...], int] = {}
    for entry in entries:
        if entry.grade is not None:
            key = (entry.image, entry.patient, entry.side, entry.visit)
            best[key] = min(entry.priority, best.get(key, entry.priority))
    for entry in entries:
        superseded = entry.priority > best.get((entry.image, entry.patient, entry.side, entry.visit), entry.priority)
        yield entry._replace(grade=None) if superseded else entry


def _header_and_rows(path: Path, name: str | None) -> tuple[list[str], list[Row]]:
    """The header, and the rows below it, padded or cut to the same number of fields."""
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
    """Refuse rows of a CSV file that have fewer fields than titles, or more filled fields than the header."""
    least = max(place for place, title in enumerate(header, start=1) if title)
    faults = [
        f"{path.name} row {number}: {counted(len(fields), 'field')}, but the header has {len(header)}; put quotation marks "
        "around a field that contains a separator, or delete the row"
        for number, fields in rows
        if len(fields) < least or any(fields[len(header) :])
    ]
    _refuse(path, faults)


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise Faults(faults, summary=f"{path}: {counted(len(faults), 'row')} cannot be used; fix them:")


def _rows_with(path: Path, rows: list[Row], place: int, column: str, value: str) -> list[Row]:
    found = [(number, fields) for number, fields in rows if fields[place] == value]
    if not found:
        values = quoted(list(dict.fromkeys(fields[place] for _, fields in rows))[:_MOST_VALUES])
        raise UserError(f"{path}: no row has '{value}' in the column '{column}'; its values are {values}; see --only")
    return found
