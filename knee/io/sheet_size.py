"""How far the sheets of an Excel or OpenDocument file reach, told before they are read into memory.

A reader makes room for every cell of the rectangle around a sheet, so one stray cell at its far end costs gigabytes, or
ends the process. ``.xlsb`` and ``.xls`` are not looked into here.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from xml.parsers.expat import ExpatError, ParserCreate

from knee.errors import UserError

MOST_CELLS = 5_000_000
_MOST_BYTES = 500_000_000
_CHUNK = 1 << 16
_REFERENCE = re.compile("([A-Za-z]{1,9})([0-9]{1,18})")


def refuse_far_cells(path: Path) -> None:
    """Refuse a file with a sheet whose filled cells span more than ``MOST_CELLS``. Its parts are read piece by piece.

    What is no zip file, as .xlsx and .ods are, is passed over.

    Raises:
        UserError: a sheet too large, named with the cell; a file that unpacks to too much, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return
    except OSError:
        return  # told by whoever reads the file
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if part.filename.lower().endswith(".xml")]
            size = sum(part.file_size for part in parts)
            if size > _MOST_BYTES:
                raise UserError(
                    f"{path}: unpacks to {size:,} bytes, more than {_MOST_BYTES:,}; save the one sheet as 'CSV UTF-8'"
                )
            for part in parts:
                _look_into(path, archive, part)
    except (zipfile.BadZipFile, zlib.error, ExpatError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: is damaged or no spreadsheet ({error}); save it again, or as 'CSV UTF-8'") from error


def refuse_large(path: Path, rows: int, columns: int, *, place: str) -> None:
    """Raises UserError where a sheet of so many rows and columns is too large; ``place`` is the cell that makes it so."""
    if rows * columns > MOST_CELLS:
        raise UserError(
            f"{path}: {place} makes the sheet {rows:,} rows × {columns:,} columns large, more than {MOST_CELLS:,} cells; "
            "delete the cell if it is a stray one, or save the sheet as 'CSV UTF-8'"
        )


def cell_name(row: int, column: int) -> str:
    """What a spreadsheet program calls a cell; both count from 1.

    >>> cell_name(1, 1), cell_name(7, 28), cell_name(1048576, 16384)
    ('A1', 'AB7', 'XFD1048576')
    """
    letters = ""
    while column > 0:
        column, letter = divmod(column - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return f"{letters}{row}"


def _look_into(path: Path, archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Follow the cells of a part that is a sheet (or an OpenDocument file's content), to its end; leave any other."""
    look = _Look(path, part.filename)
    with archive.open(part) as file:
        while look.goes_on and (chunk := file.read(_CHUNK)):
            look.parser.Parse(chunk, False)


class _Look:
    """What was seen of a part so far."""

    def __init__(self, path: Path, name: str) -> None:
        self.goes_on = True
        self.parser = ParserCreate()
        self.parser.StartElementHandler = self._root
        self._path, self._sheet = path, name
        self._begin()

    def _begin(self) -> None:
        """Before a sheet's first row."""
        self._rows = self._columns = 0  # the rectangle of filled cells, from A1
        self._row, self._column = 1, 1  # of the next cell that does not name its place
        self._place = 1, 1  # of the cell that is being read
        self._repeated, self._end = 1, 0  # of the row of an OpenDocument file: how often, and its last filled column

    def _root(self, name: str, _: Mapping[str, str]) -> None:
        kinds = {
            "worksheet": (self._excel_start, self._excel_end),
            "document-content": (self._open_start, self._open_end),
        }
        start, end = kinds.get(_local(name), (None, None))
        self.parser.StartElementHandler, self.parser.EndElementHandler = start, end
        self.goes_on = start is not None

    def _filled(self, row: int, column: int) -> None:
        self._rows, self._columns = max(self._rows, row), max(self._columns, column)
        if self._rows * self._columns > MOST_CELLS:
            place = f"cell {cell_name(row, column)} in '{self._sheet}'"
            refuse_large(self._path, self._rows, self._columns, place=place)

    def _excel_start(self, name: str, attributes: Mapping[str, str]) -> None:
        name = _local(name)
        if name == "row":
            self._row = _number(attributes.get("r"), self._row)
        elif name == "c":
            match = _REFERENCE.fullmatch(attributes.get("r", ""))
            self._place = (int(match[2]), _column(match[1])) if match else (self._row, self._column)
            self._column = self._place[1]
        elif name in ("v", "is"):  # without either, a cell has a format at most
            self._filled(*self._place)

    def _excel_end(self, name: str) -> None:
        name = _local(name)
        if name == "row":
            self._row, self._column = self._row + 1, 1
        elif name == "c":
            self._column += 1

    def _open_start(self, name: str, attributes: Mapping[str, str]) -> None:
        name = _local(name)
        if name == "table":
            self._begin()
            self._sheet = attributes.get("table:name", "")
        elif name == "table-row":
            self._repeated, self._end, self._column = _number(attributes.get("table:number-rows-repeated"), 1), 0, 1
        elif name in ("table-cell", "covered-table-cell"):
            self._column += _number(attributes.get("table:number-columns-repeated"), 1)
            if any(key.startswith("office:") and "value" in key for key in attributes):
                self._end = self._column - 1

    def _open_end(self, name: str) -> None:
        if _local(name) == "table-row":
            if self._end:
                self._filled(self._row + self._repeated - 1, self._end)
            self._row += self._repeated


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 19 else otherwise


def _column(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - ord("A") + 1
    return number
