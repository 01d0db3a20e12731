"""Read CSV tables written by people, as text with the line number of each row."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from knee.errors import Faults, UserError

MOST_FAULTS = 200
_MOST_TITLES = 20
_MOST_COLUMNS = 5_000
_SEPARATORS = ",;\t|"
_SHORT = 16
_SPACE = re.compile(r"[^\S\n]")


def read_csv_rows(path: Path, required: tuple[str, ...]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a small CSV file, each row with the line it starts on. Raises UserError as ``csv_rows``."""
    rows = csv_rows(path, required)
    return next(rows)[1], list(rows)


def csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The header of a CSV file and its rows, each with the line it starts on; at least the header.

    The separator is ',', ';', tab or '|': the most frequent one in the first line that contains any.

    Raises:
        UserError: missing, a folder, empty, not UTF-8, or not a table of text.
    """
    text = _text_of(path)
    if not text.strip():
        raise UserError(f"{path}: is empty; its first line names the columns, {','.join(required)}")
    separator, stream = separator_of(text), io.StringIO(text, newline="")
    del text  # a million rows are large
    reader = csv.reader(stream, delimiter=separator, strict=True)
    start, none = 1, True
    often: dict[str, str] = {}
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                none = False
                # Patients, sides and grades occur in many rows: one object for each.
                short = (field.strip() for field in fields)
                yield start, [often.setdefault(field, field) if len(field) <= _SHORT else field for field in short]
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {start}: is not a CSV row ({error}); check its quotation marks") from error
    if none:
        raise UserError(f"{path}: contains only separators; its first line names the columns, {','.join(required)}")


def _text_of(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a CSV file") from error
    if b"\0" in raw:
        raise UserError(f"{path}: is not a CSV file but binary; save the table as 'CSV UTF-8'")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: is not UTF-8 text; save the table as 'CSV UTF-8'") from error


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def spreadsheet_text(text: str) -> str:
    """Free text as a CSV field that no spreadsheet program interprets as a formula; ``plain_text`` reverses it.

    >>> spreadsheet_text("=1+1"), spreadsheet_text("worse"), plain_text(spreadsheet_text("'=x"))
    ("'=1+1", 'worse', "'=x")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(field: str) -> str:
    """The original text of a field written by ``spreadsheet_text``."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field


def separator_of(text: str) -> str:
    """The separator of a CSV file's fields, determined as described in ``csv_rows``.

    >>> separator_of("\\ncase;said\\nc1;a, b, c")
    ';'
    """
    first = next((line for line in io.StringIO(text, newline=None) if any(mark in line for mark in _SEPARATORS)), "")
    return max(_SEPARATORS, key=first.count)


class RaggedRow(NamedTuple):
    """A row with more or fewer fields than its header."""

    line: int
    fields: list[str]
    reason: str


def read_rows(path: Path, required: tuple[str, ...]) -> tuple[pd.DataFrame, list[RaggedRow]]:
    """The rows of a CSV file as text, with a ``line`` column, and the rows with another number of fields than the header.

    The titles of required columns may be written in any case.

    Raises:
        UserError: as ``csv_rows``, or too many columns; Faults: a required column is missing, or a column occurs twice
            or is named ``line``.
    """
    rows = csv_rows(path, required)
    header = next(rows)[1]
    if len(header) > _MOST_COLUMNS:
        raise UserError(f"{path}: has {len(header):,} columns, more than {_MOST_COLUMNS:,}; keep those that are needed")
    header = [title.lower() if title.lower() in required else title for title in header]
    times = Counter(header)
    got = some_titles(header)
    faults = [
        f"column '{name}' is missing (its fields may be empty); found {got}" for name in required if name not in times
    ]
    faults += [f"column '{name}' occurs {count} times; keep one" for name, count in times.items() if count > 1]
    if "line" in times:
        faults.append("column 'line' has the name of a column that is added here, the line of each row; rename it")
    if faults:
        raise Faults([f"{path.name} line 1: {fault}" for fault in faults], summary=f"{path}: the columns are wrong")
    reason = f"fields, but the header has {len(header)}; put quotation marks around a field that contains a separator"
    table = _regular_table(path, len(header))
    if table is not None:
        return table.set_axis([*header, "line"], axis="columns"), []
    ragged: list[RaggedRow] = []
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in header]
    for line, fields in rows:
        if len(fields) != len(header):
            ragged.append(RaggedRow(line, fields, f"{len(fields)} {reason}"))
            continue
        lines.append(line)
        for column, field in zip(columns, fields, strict=True):
            column.append(field)
    table = pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=str)
    table["line"] = pd.Series(lines, dtype="int64")
    return table, ragged


def _regular_table(path: Path, width: int) -> pd.DataFrame | None:
    """The rows of a file where each line is a row of ``width`` fields and nothing needs care, five times as fast.

    None if the file has quotation marks, spaces, empty rows, or a row of another width. Columns are numbered; the last one
    is the line.
    """
    if width < 2 or not path.is_file():  # a pipe can be read only once
        return None
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    text = raw.decode()
    if '"' in text or _SPACE.search(text):
        return None
    separator = separator_of(text)
    del text
    content = np.frombuffer(raw if raw.endswith(b"\n") else raw + b"\n", np.uint8)
    ends = np.flatnonzero(content == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    marks = np.flatnonzero(content == ord(separator))
    if len(ends) < 2 or len(marks) != len(ends) * (width - 1) or (ends - starts == width - 1).any():
        return None
    of_line = marks.reshape(len(ends), width - 1)
    if (of_line[:, 0] < starts).any() or (of_line[:, -1] > ends).any():
        return None
    table = pd.read_csv(
        io.BytesIO(raw), sep=separator, dtype=str, na_filter=False, quoting=csv.QUOTE_NONE, header=None, skiprows=1
    )
    table["line"] = np.arange(2, len(table) + 2)
    return table


def read_table(path: Path, required: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """As ``read_rows``, but rows with another number of fields are returned as error messages."""
    table, ragged = read_rows(path, required)
    return table, [f"{path.name} line {row.line}: {row.reason}" for row in ragged]


def shortened(faults: list[str]) -> list[str]:
    """The first ``MOST_FAULTS`` errors, and how many more there are."""
    if len(faults) <= MOST_FAULTS:
        return faults
    return [*faults[:MOST_FAULTS], f"… and {len(faults) - MOST_FAULTS} more"]


def some_titles(header: list[str]) -> str:
    """The first titles of a header, in one line."""
    titles = [title for title in header if title]
    more = f" and {len(titles) - _MOST_TITLES} more" if len(titles) > _MOST_TITLES else ""
    return ", ".join(titles[:_MOST_TITLES]) + more
