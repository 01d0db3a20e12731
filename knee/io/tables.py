"""Tables that people make, CSV or spreadsheets: read as texts with the line of each row."""

from __future__ import annotations

import csv
import datetime
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from knee.errors import Faults, UserError, quoted
from knee.io.sheet_size import cell_name, refuse_far_cells, refuse_large

MOST_FAULTS = 200
_EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
_SEPARATORS = ",;\t|"


def read_csv_rows(path: Path, required: tuple[str, ...]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a small CSV file, each row with the line it starts on.

    Between the fields: ',', ';', tab or '|', whichever the first line with any of them has most of.

    Raises:
        UserError: missing, a folder, empty, not UTF-8, or not a table of text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a CSV file") from error
    if b"\0" in raw:
        raise UserError(f"{path}: is not a CSV file but binary; save the table as 'CSV UTF-8'")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: is not UTF-8 text; save the table as 'CSV UTF-8'") from error
    if not text.strip():
        raise UserError(f"{path}: is empty; its first line names the columns, {','.join(required)}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator_of(text), strict=True)
    rows, start = [], 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((start, [field.strip() for field in fields]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {start}: is not a CSV row ({error}); check its quotation marks") from error
    if not rows:
        raise UserError(f"{path}: is empty but for separators; its first line names the columns, {','.join(required)}")
    return rows[0][1], rows[1:]


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def spreadsheet_text(text: str) -> str:
    """A text that people wrote, as a CSV field that no spreadsheet takes for a formula; ``plain_text`` undoes it.

    >>> spreadsheet_text("=1+1"), spreadsheet_text("worse"), plain_text(spreadsheet_text("'=x"))
    ("'=1+1", 'worse', "'=x")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(field: str) -> str:
    """The text that ``spreadsheet_text`` made a field of."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field


def separator_of(text: str) -> str:
    """What stands between the fields of a CSV file, told as ``read_csv_rows`` says.

    >>> separator_of("\\ncase;said\\nc1;a, b, c")
    ';'
    """
    first = next((line for line in text.splitlines() if any(mark in line for mark in _SEPARATORS)), "")
    return max(_SEPARATORS, key=first.count)


class RaggedRow(NamedTuple):
    """A row with more or fewer fields than its header."""

    line: int
    fields: list[str]
    reason: str


def read_rows(path: Path, required: tuple[str, ...]) -> tuple[pd.DataFrame, list[RaggedRow]]:
    """The rows of a CSV file as texts, with a ``line`` column, and the rows that have another number of fields.

    Raises:
        UserError: as ``read_csv_rows``; Faults: a required column is missing, a column is there twice or called ``line``.
    """
    header, rows = read_csv_rows(path, required)
    got = ", ".join(header)
    faults = [
        f"column '{name}' is missing (its fields may be empty); found {got}" for name in required if name not in header
    ]
    faults += [
        f"column '{name}' is there {header.count(name)} times; keep one"
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    ]
    if "line" in header:
        faults.append("column 'line' has the name of what is added here, the line of each row; rename it")
    if faults:
        raise Faults([f"{path.name} line 1: {fault}" for fault in faults], summary=f"{path}: the columns are wrong")
    reason = f"fields where the header has {len(header)}; put quotation marks around a field that holds a separator"
    ragged = [RaggedRow(line, fields, f"{len(fields)} {reason}") for line, fields in rows if len(fields) != len(header)]
    whole = [(line, fields) for line, fields in rows if len(fields) == len(header)]
    table = pd.DataFrame([fields for _, fields in whole], columns=header, dtype=str)
    table["line"] = pd.Series([line for line, _ in whole], dtype="int64")
    return table, ragged


def read_table(path: Path, required: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """As ``read_rows``, the rows with another number of fields told as faults."""
    table, ragged = read_rows(path, required)
    return table, [f"{path.name} line {row.line}: {row.reason}" for row in ragged]


def shortened(faults: list[str]) -> list[str]:
    """The first ``MOST_FAULTS`` faults, and how many more there are."""
    if len(faults) <= MOST_FAULTS:
        return faults
    return [*faults[:MOST_FAULTS], f"… and {len(faults) - MOST_FAULTS} more"]


def read_sheet_rows(path: Path, name: str | None) -> list[tuple[int, list[str]]]:
    """All rows of a sheet of an Excel or OpenDocument file, or of a CSV file, as texts with their numbers; no empty ones.

    Args:
        name: which sheet (default: the only one).

    Raises:
        UserError: unreadable, too large, no such sheet, several and none named, or as ``read_csv_rows``.
    """
    if path.suffix.lower() not in _EXCEL:
        if name is not None:
            raise UserError(
                f"{path}: is no Excel or OpenDocument file ({', '.join(_EXCEL)}), so it has no sheets; leave out --sheet"
            )
        header, rows = read_csv_rows(path, ("patient", "side", "grade"))
        return [(1, header), *rows]
    import python_calamine  # here, so that nothing else needs it

    refuse_far_cells(path)
    try:
        with python_calamine.CalamineWorkbook.from_path(path) as book:
            names = book.sheet_names
            if not names:
                raise UserError(f"{path}: has no sheets; save it again, or as 'CSV UTF-8'")
            if name is None and len(names) > 1:
                raise UserError(f"{path}: has the sheets {quoted(names)}; write one of them after --sheet")
            if name is not None and name not in names:
                raise UserError(f"{path}: has no sheet '{name}'; there are {quoted(names)}")
            sheet = book.get_sheet_by_name(name or names[0])
            height, width = (last + 1 for last in sheet.end or (-1, -1))
            refuse_large(path, height, width, place=f"cell {cell_name(height, width)} in '{sheet.name}'")
            cells = sheet.to_python(skip_empty_area=False)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give the path of a spreadsheet"
        ) from error
    except BaseException as error:
        # A panic of the library's compiled part derives from BaseException, and its class cannot be imported.
        if not isinstance(error, python_calamine.CalamineError) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: is damaged or no spreadsheet ({error}); save it again, or as 'CSV UTF-8'") from error
    texts = [(number, [_cell(cell) for cell in row]) for number, row in enumerate(cells, start=1)]
    return [(number, fields) for number, fields in texts if any(fields)]


def _cell(cell: Any) -> str:
    """A cell as a person reads it: 9001.0 is '9001'."""
    if isinstance(cell, bool) or not isinstance(cell, float | int):
        return cell.isoformat() if isinstance(cell, datetime.date | datetime.time) else str(cell).strip()
    return str(int(cell)) if float(cell).is_integer() else str(cell)
