"""The reports of a manifest: its column ``report`` holds texts, or paths of text files."""

from __future__ import annotations

import hashlib
import logging
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from image_text.text import PAD, Tokens, Vocabulary, cleaned, masked, read_grade_words
from knee.data.manifest import REQUIRED, Manifest
from knee.errors import Faults, UserError, counted

log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 22
_LONG_WORDS = 10_000
_SHOWN = 5
_CHUNK = 256
_OLDEST = 115
_OF_THE_MANIFEST = (
    *(*REQUIRED, "split", "visit", "series", "spacing_mm", "mask_source", "mask_confidence"),
    *("grade_original", "review", "reviewers", "report", "line"),
)


def read_reports(manifest: Manifest, *, needed: bool = True) -> list[str]:
    """(N,) The cleaned report of every row, as ``each_report``, all in memory."""
    return list(each_report(manifest, needed=needed))


def each_report(manifest: Manifest, *, needed: bool = True) -> Iterator[str]:
    """The cleaned report of one row after the other, '' where there is none; files are read one at a time.

    A field that ends with ``.txt`` and has no white space is the path of a UTF-8 file, relative to the manifest.

    Raises:
        UserError: no column ``report``, or after the last row no report at all, if one is ``needed``; Faults: after the last
            row, every file that is missing, not UTF-8, or larger than 4 MB.
    """
    if "report" not in manifest.table:
        if needed:
            raise UserError(
                f"{manifest.path}: has no column 'report'; join one from a spreadsheet with dcmt manifest FOLDER --grades "
                "FILE --report NAME, or write the texts, or paths of .txt files, into such a column"
            )
        yield from [""] * len(manifest.table)
        return
    faults: list[str] = []
    some = False
    for line, field in zip(manifest.table["line"], manifest.table["report"], strict=True):
        report = ""
        try:
            report = cleaned(_text_of(str(field), manifest.folder))
        except UserError as error:
            faults.append(f"{manifest.path.name} line {line}: {error}")
        some = some or bool(report)
        yield report
    if faults:
        raise Faults(faults, summary=f"{manifest.path}: {counted(len(faults), 'report')} cannot be read; fix them:")
    if needed and not some:
        raise UserError(f"{manifest.path}: the column 'report' is empty in every row; write reports into it")


def _text_of(field: str, folder: Path) -> str:
    if not field.lower().endswith(".txt") or len(field.split()) != 1:
        return field
    path = folder / field
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise UserError(f"report '{field}' has {size:,} bytes, more than a report; name the file of the report")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"report '{field}' cannot be read ({error.strerror}); fix the path or leave it empty"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"report '{field}' is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


@dataclass(frozen=True)
class Reports:
    """The reports of all rows as tokens."""

    tokens: Tokens
    """(N, L) int32, of a file that is gone when the process ends; all PAD where there is no report."""
    texts: NDArray[np.int64]
    """(N,) equal numbers for reports that are equal as tokens; −1 where there is none."""
    grade_words: int
    """How many reports named the grade, and were masked."""
    cut: int
    """How many reports were cut at L tokens."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N,) whether the row has a report."""
        return self.texts >= 0

    def describe(self) -> str:
        """Numbers of reports, of distinct ones, of masked and of cut ones, as a sentence."""
        known = self.texts[self.present]
        return (
            f"{len(known)} of {len(self.texts)} images have a report, {len(np.unique(known))} of them distinct as tokens; "
            f"{self.grade_words} named the grade, which is masked; {self.cut} cut at {self.tokens.shape[1]} tokens"
        )


def encode_reports(reports: Iterable[str], *, vocabulary: Vocabulary, length: int, grade_words: str = "") -> Reports:
    """Cleaned reports (N,) as tokens, with words that name the grade masked.

    Tokens go to a temporary file that is mapped, so memory holds 16 bytes of each report, however long it is.
    """
    words = read_grade_words(grade_words)
    digests, named, cut = bytearray(), 0, 0
    texts = iter(reports)
    with tempfile.TemporaryFile() as file:
        while chunk := [masked(report, words) for report in islice(texts, _CHUNK)]:
            tokens, more = vocabulary.encode([text for text, _ in chunk], length=length)
            file.write(np.ascontiguousarray(tokens, np.int32).tobytes())
            for row in tokens:
                digests += hashlib.blake2b(row.tobytes() if (row != PAD).any() else b"", digest_size=16).digest()
            named, cut = named + sum(count > 0 for _, count in chunk), cut + more
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if digests else b""
    empty = hashlib.blake2b(b"", digest_size=16).digest()
    keys = np.frombuffer(bytes(digests), "V16")
    numbers = np.unique(keys, return_inverse=True)[1].reshape(-1)
    known = keys != np.frombuffer(empty, "V16")
    texts_of = np.where(known, numbers, -1).astype(np.int64)
    return Reports(np.frombuffer(mapped, np.int32).reshape(-1, length), texts_of, named, cut)


def remarks(manifest: Manifest, *, grade_words: str = "") -> list[str]:
    """What deserves attention in the reports of a manifest, in sentences, for ``dcmt check``; they name lines, no texts.

    Raises Faults as ``read_reports``.
    """
    if "report" not in manifest.table:
        return []
    columns = _column_remarks(manifest)
    words = read_grade_words(grade_words)
    seen: dict[bytes, str] = {}
    empty, repeated, long, named, capital = [], [], [], [], []
    rows = zip(manifest.table["line"].tolist(), manifest.table["patient"], strict=True)
    for (line, patient), report in zip(rows, each_report(manifest, needed=False), strict=True):
        if not report:
            empty.append(line)
            continue
        key = hashlib.blake2b(report.casefold().encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if seen.setdefault(key, patient) != patient:
            repeated.append(line)
        if len(report.split()) > _LONG_WORDS:
            long.append(line)
        if masked(report, words)[1]:
            named.append(line)
        if len(report) > 20 and report.isupper():
            capital.append(line)
    found = (
        (empty, "without a report"),
        (repeated, "with the report of another patient's image, word by word"),
        (long, f"with a report of more than {_LONG_WORDS:,} words"),
        (named, "with a report that names the grade (masked before the text tower)"),
        (capital, "with a report in capitals only (case is ignored)"),
    )
    return [f"{counted(len(which), 'row')} {what}: {_some(which)}" for which, what in found if which] + columns


def _column_remarks(manifest: Manifest) -> list[str]:
    """Further columns with one value, and impossible ages."""
    found = []
    table = manifest.table
    for name in (name for name in table if name not in _OF_THE_MANIFEST):
        values = set(table[name].astype(str).str.strip()) - {""}
        if len(values) == 1 and len(table) > 1:
            found.append(f"column '{name}' has one value in all rows, so it says nothing as an input")
        if str(name).lower() == "age":
            ages = pd.to_numeric(table[name], errors="coerce")
            odd = table.loc[(ages < 0) | (ages > _OLDEST), "line"].tolist()
            found += [f"{counted(len(odd), 'row')} with an age below 0 or above {_OLDEST}: {_some(odd)}"] if odd else []
    return found


def _some(lines: list[int]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ("lines " if len(lines) > 1 else "line ") + ", ".join(map(str, lines[:_SHOWN])) + more
