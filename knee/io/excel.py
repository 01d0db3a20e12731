"""Read Excel files as text, row by row. A sheet that is too large is refused; the message names the outermost cell."""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knee.errors import UserError, quoted

EXCEL = (".xlsx", ".xlsm")
OTHER_SPREADSHEETS = (".xls", ".xlsb", ".ods", ".numbers")
MOST_ROWS, MOST_COLUMNS, MOST_CELLS = 200_000, 5_000, 5_000_000
_LAST_ROW = 1_048_576
_MOST_BYTES = 100_000_000
_FORMULA = re.compile(rb"<(?:\w+:)?f[\s/>]")
_SAVE = "save it again, or as 'CSV UTF-8'"


def read_excel_rows(path: Path, name: str | None) -> list[tuple[int, list[str]]]:
    """The non-empty rows of an Excel sheet with their numbers; each ends at its last filled cell.

    An error is read as its text (``#N/A``); a formula that was never calculated, as the formula (``=A1+1``).

    Args:
        name: which sheet (default: the only one).

    Raises:
        UserError: unreadable, damaged, too large, no such sheet, or several sheets and no ``name``.
    """
    import openpyxl  # imported here because nothing else needs it

    try:
        with warnings.catch_warnings(), path.open("rb") as file, path.open("rb") as again:
            warnings.simplefilter("ignore")
            any_formula = _look_into(path)
            results = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = results[_sheet_name(path, [sheet.title for sheet in results.worksheets], name)]
            formulas = openpyxl.load_workbook(again, read_only=True)[sheet.title] if any_formula else sheet
            return list(_filled_rows(path, sheet, formulas))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give the path of a spreadsheet"
        ) from error
    except UserError:
        raise
    except Exception as error:  # damaged files can raise almost any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{path}: is damaged or not an Excel file ({reason}); {_SAVE}") from error


def cell_name(row: int, column: int) -> str:
    """The name of a cell in a spreadsheet program; both numbers count from 1.

    >>> cell_name(1, 1), cell_name(7, 28)
    ('A1', 'AB7')
    """
    from openpyxl.utils import get_column_letter

    return f"{get_column_letter(column)}{row}"


def _look_into(path: Path) -> bool:
    """Whether the file may contain formulas; UserError if it unpacks to too many bytes."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
        if size > _MOST_BYTES:
            raise UserError(
                f"{path}: unpacks to {size:,} bytes, more than {_MOST_BYTES:,}; save the sheet as 'CSV UTF-8'"
            )
        return any(_FORMULA.search(archive.read(part)) for part in archive.infolist())


def _sheet_name(path: Path, names: list[str], name: str | None) -> str:
    if not names:
        raise UserError(f"{path}: has no sheets; {_SAVE}")
    if name is None and len(names) > 1:
        raise UserError(f"{path}: has the sheets {quoted(names)}; write one of them after --sheet")
    if name is not None and name not in names:
        raise UserError(f"{path}: has no sheet '{name}'; there are {quoted(names)}")
    return name or names[0]


def _filled_rows(path: Path, results: Any, formulas: Any) -> Iterator[tuple[int, list[str]]]:
    cells = 0
    sheets = [results] if formulas is results else [results, formulas]
    for sheet in sheets:
        sheet.reset_dimensions()  # the size stated in the file may be wrong
    for number, row in enumerate(zip(*(sheet.iter_rows() for sheet in sheets), strict=True), start=1):
        fields = [_text(cell, formula) for cell, formula in zip(row[0], row[-1], strict=True)]
        while fields and not fields[-1]:
            fields.pop()
        cells += len(fields)
        if number > _LAST_ROW or (fields and (number > MOST_ROWS or len(fields) > MOST_COLUMNS or cells > MOST_CELLS)):
            cell = cell_name(number, max(len(fields), 1))
            raise UserError(
                f"{path}: cell {cell} is too far from the first; at most {MOST_ROWS:,} rows, {MOST_COLUMNS:,} columns and "
                f"{MOST_CELLS:,} cells are read; delete stray cells, or save the sheet as 'CSV UTF-8'"
            )
        if fields:
            yield number, fields


def _text(cell: Any, formula: Any) -> str:
    """A cell as displayed to a person: 9001.0 is '9001'."""
    value = cell.value
    if value is None:
        # An empty result has the type text; a number without a value was never calculated.
        never = formula.data_type == "f" and cell.data_type != "str"
        return (formula.value if isinstance(formula.value, str) else "={…}") if never else ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value).strip()
