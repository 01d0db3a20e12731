"""Verdicts: what a reader's browser hands in, checked as a whole, and the append-only table they are kept in."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from knee.errors import Faults, UserError, counted
from knee.io.files import write_text as write_whole_text
from knee.io.folder_lock import folder_lock
from knee.io.plain import shown
from knee.io.tables import plain_text, read_csv_rows, read_table, separator_of, shortened, spreadsheet_text
from knee.review.readers import alike_readers

SCHEMA = "knee-review-verdicts/1"
VERDICTS = ("agree", "disagree", "unsure", "bad_image")
_GRADES = ("blind_grade", "final_grade")
_WRITTEN = ("reviewer", "comment")  # by people: nothing of it may become a formula in a spreadsheet
_TIME_LIKE = "2025-03-01T12:00:00Z"
_LARGEST_FILE = 50_000_000
_LONGEST_COMMENT = 10_000  # letters; a field of a CSV file holds 131,072, the page's own 2,000


@dataclass(frozen=True)
class Verdict:
    """One reader's word on one case."""

    case: str
    reviewer: str
    time: str
    """ISO 8601 with its zone: when it was last changed."""
    run: str
    model_hash: str
    blind_grade: int | None
    """Given before the model's part was shown; None where the case was not read blind."""
    final_grade: int | None
    verdict: str
    """One of ``VERDICTS`` on the model's grade and map, or empty."""
    comment: str

    @property
    def says_anything(self) -> bool:
        """Whether it grades, judges or comments; not once all of that was withdrawn."""
        return self.blind_grade is not None or self.final_grade is not None or bool(self.verdict or self.comment)


COLUMNS = tuple(field.name for field in fields(Verdict))


@dataclass(frozen=True)
class Expected:
    """What a verdicts file must be about."""

    run: str
    model_hash: str
    grades: int
    """K."""
    cases: Collection[str]


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    added: int
    known: int
    """Verdicts that the table held already, word for word."""
    revised: int
    """Verdicts added that take the place of an earlier one of the same reader."""
    older: int = 0
    """Verdicts added that are earlier than what the table held of the same reader, which goes on counting."""


def import_verdicts(
    paths: Sequence[Path],
    table_path: Path,
    *,
    expected: Expected,
    revise: bool = False,
    readers: Mapping[str, str] | None = None,
) -> Imported:
    """Check verdicts files and append them to ``verdicts.csv``: all of them or, with any fault, none.

    What the table holds already is skipped, so a reader may hand in a file that has grown. A verdict that changed is
    appended as a further row if ``revise``, and refused otherwise; no row is ever removed, and the one of the latest time
    counts (``latest_verdicts``). ``readers`` is what names in the files are recorded as; a new name that may be a spelling of
    another is refused unless it is in there. Imports at the same time wait for each other.

    Raises Faults listing all that is wrong in all files, UserError where a file cannot be read or the table not be written.

    A table that is a link, as to a shared drive, stays one: what it leads to grows.
    """
    table_path = Path(table_path)
    if table_path.is_symlink() and not table_path.exists():
        raise UserError(f"{table_path}: is a link to nowhere; bring back what it leads to, or remove the link")
    with folder_lock(table_path.resolve().parent):
        return _import(paths, table_path, expected, revise, readers or {})


def _import(
    paths: Sequence[Path], table_path: Path, expected: Expected, revise: bool, readers: Mapping[str, str]
) -> Imported:
    faults: list[str] = []
    given = [
        replace(verdict, reviewer=readers.get(verdict.reviewer, verdict.reviewer))
        for path in paths
        for verdict in _read_file(Path(path), expected, faults)
    ]
    faults += _repeated(given)
    before = read_verdicts(table_path, run=expected.run, grades=expected.grades) if table_path.exists() else []
    faults += _alike(before, given, readers=readers)
    latest, held = latest_verdicts(before), set(before)
    new: list[Verdict] = []
    revised = older = 0
    for verdict in dict.fromkeys(given):
        earlier = latest.get((verdict.case, verdict.reviewer))
        if verdict in held:
            continue
        if earlier is not None:
            comes_later = _moment(verdict) >= _moment(earlier)
            revised, older = revised + comes_later, older + (not comes_later)
            if not revise:
                faults.append(
                    f"case {verdict.case}: reader {verdict.reviewer} said something else at {earlier.time}; "
                    "import with --revise to let the later verdict count"
                )
        new.append(verdict)
    if faults:
        raise Faults(shortened(faults), summary=f"{counted(len(faults), 'fault')}; nothing was imported")
    if new:
        _append(table_path, new)
    return Imported(added=len(new), known=len(set(given)) - len(new), revised=revised, older=older)


def _alike(before: Sequence[Verdict], given: Sequence[Verdict], *, readers: Mapping[str, str]) -> list[str]:
    """What to ask about new readers whose names may be spellings of one that is known."""
    known = {verdict.reviewer for verdict in before} | {name for name, recorded in readers.items() if name == recorded}
    faults = []
    for first, *others in alike_readers(verdict.reviewer for verdict in (*before, *given)):
        for other in (name for name in others if name not in known):
            same, apart = (shlex.quote(f"{other}={name}") for name in (first, other))
            faults.append(
                f"reader {other!r} may be {first!r}: if they are one person, add --reader {same}; if not, --reader {apart}"
            )
    return faults


def verdicts_document(verdicts: Sequence[Verdict], *, grade_set: str, grades: int) -> dict[str, Any]:
    """What the review page saves, from one reader's verdicts: for readings made with another tool, or simulated.

    ``grade_set`` is its name, ``grades`` K. Write it as JSON and import it. Raises UserError unless the verdicts are of
    one reader, run and model.
    """
    heads = {(verdict.reviewer, verdict.run, verdict.model_hash) for verdict in verdicts}
    if len(heads) != 1:
        raise UserError(f"a verdicts file is of one reader, run and model; these are of {len(heads)}")
    ((reviewer, run, model_hash),) = heads
    said = ("case", "blind_grade", "final_grade", "comment", "time")
    return {
        "schema": SCHEMA,
        "run": run,
        "model_hash": model_hash,
        "grade_set": grade_set,
        "grades": grades,
        "reviewer": reviewer,
        "verdicts": [
            {name: getattr(verdict, name) for name in said} | {"verdict": verdict.verdict or None}
            for verdict in verdicts
        ],
    }


def read_verdicts(path: Path, *, run: str, grades: int) -> list[Verdict]:
    """All rows of ``verdicts.csv``, oldest first.

    The table may have been altered by hand, so its rows are checked as those of a verdicts file are: ``run`` is the run they
    must be of, ``grades`` K. They may be of any model: readers may have seen earlier ones, and the key keeps the latest.

    Raises UserError where it cannot be read, Faults for what is wrong with its rows.
    """
    table, faults = read_table(Path(path), COLUMNS)
    verdicts = []
    for row in table.to_dict("records"):
        texts = {name: str(row[name]) for name in COLUMNS}
        texts |= {name: plain_text(texts[name]) for name in _WRITTEN}
        wrong = _row_faults(texts, run, grades)
        faults += [f"{Path(path).name} line {row['line']}: {fault}" for fault in wrong]
        if not wrong:
            given = {name: texts.pop(name) for name in _GRADES}
            numbers = {name: int(grade) if grade else None for name, grade in given.items()}
            verdicts.append(Verdict(**texts, **numbers))  # type: ignore[arg-type]
    if faults:
        way_out = "mend these rows, or restore the table from a backup"
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'fault')}; {way_out}:")
    return verdicts


def _row_faults(texts: Mapping[str, str], run: str, grades: int) -> list[str]:
    """What is wrong with the fields of one row of the table."""
    faults = []
    if texts["run"] != run:
        faults.append(
            f"is of run {shown(texts['run'])}, not {run!r}; remove the row, or name the run's folder as before"
        )
    known = ("", *map(str, range(grades)))
    faults += [
        f"{name} {shown(texts[name])} is not 0–{grades - 1} or empty" for name in _GRADES if texts[name] not in known
    ]
    if texts["verdict"] not in ("", *VERDICTS):
        faults.append(f"verdict {shown(texts['verdict'])} is not one of {', '.join(VERDICTS)} or empty")
    if not _is_time(texts["time"]):
        faults.append(f"time {shown(texts['time'])} is not like {_TIME_LIKE}")
    return faults


def latest_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], Verdict]:
    """What counts for each (case, reviewer): the row with the latest time, the later row among equals."""
    latest: dict[tuple[str, str], Verdict] = {}
    for verdict in verdicts:
        key = verdict.case, verdict.reviewer
        if key not in latest or _moment(verdict) >= _moment(latest[key]):
            latest[key] = verdict
    return latest


def _moment(verdict: Verdict) -> datetime:
    return datetime.fromisoformat(verdict.time)


def _read_file(path: Path, expected: Expected, faults: list[str]) -> list[Verdict]:
    """The verdicts of one file; what is wrong with it is added to ``faults``."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path}: is larger than any verdicts file; choose the file that the review page saved")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a verdicts file") from error
    except (ValueError, RecursionError) as error:
        faults.append(f"{path.name}: is damaged, not JSON ({error}); download the verdicts again")
        return []
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        faults.append(f"{path.name}: is not a verdicts file ({SCHEMA}); choose the file that the review page saved")
        return []
    entries, reviewer = document.get("verdicts"), document.get("reviewer")
    wrong = _head_faults(document, expected)
    if not isinstance(entries, list):
        wrong.append("has no list of verdicts; download the verdicts again")
    if not isinstance(reviewer, str) or not _one_line(reviewer) or len(reviewer) > 100:
        wrong.append(f"names no reader (reviewer {shown(reviewer)}); write initials or a number")
    if wrong or not isinstance(entries, list):
        faults.extend(f"{path.name}: {fault}" for fault in wrong)
        return []
    verdicts = []
    for number, entry in enumerate(entries, 1):
        found = _entry_faults(entry, expected)
        faults.extend(f"{path.name} verdict {number}: {fault}" for fault in found)
        if not found:
            verdicts.append(_verdict(entry, _one_line(str(reviewer)), expected))
    return verdicts


def _head_faults(document: dict[str, Any], expected: Expected) -> list[str]:
    faults = []
    if document.get("run") != expected.run:
        way_out = "import it into that run"
        if document.get("model_hash") == expected.model_hash:
            way_out = "its model is this run's: if the run's folder was renamed, name it as before; if not, " + way_out
        faults.append(f"is of run {shown(document.get('run'))}, not {expected.run!r}; {way_out}")
    elif document.get("model_hash") != expected.model_hash:
        faults.append(
            f"is of model {shown(document.get('model_hash'))}, but the run's is {expected.model_hash!r}: the reader saw "
            "another model's maps; export the review again and have the cases read again"
        )
    if document.get("grades") != expected.grades:
        faults.append(
            f"has {shown(document.get('grades'))} grades, the run has {expected.grades}; choose the run's own file"
        )
    return faults


def _entry_faults(entry: Any, expected: Expected) -> list[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("case"), str):
        return ["names no case; download the verdicts again"]
    case, faults = entry["case"], []
    if case not in expected.cases:
        faults.append(f"case {shown(case)} is not one of this run; was the file made from another export?")
    for name in _GRADES:
        grade = entry.get(name)
        # bool is an int to Python, and true is no grade.
        if grade is not None and (type(grade) is not int or not 0 <= grade < expected.grades):
            faults.append(f"case {shown(case)}: {name} {shown(grade)} is not 0–{expected.grades - 1} or null")
    if entry.get("verdict") not in (None, *VERDICTS):
        faults.append(
            f"case {shown(case)}: verdict {shown(entry['verdict'])} is not one of {', '.join(VERDICTS)} or null"
        )
    comment = entry.get("comment", "")
    if not isinstance(comment, str):
        faults.append(f"case {shown(case)}: comment {shown(comment)} is not text")
    elif len(comment) > _LONGEST_COMMENT:
        faults.append(
            f"case {shown(case)}: comment has {len(comment)} letters, the most is {_LONGEST_COMMENT}; shorten it"
        )
    if not _is_time(entry.get("time")):
        faults.append(f"case {shown(case)}: time {shown(entry.get('time'))} is not like {_TIME_LIKE}")
    return faults


def _is_time(value: Any) -> bool:
    # fromisoformat takes any letter between date and time, half of a surrogate pair too, which no file can hold.
    if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _verdict(entry: dict[str, Any], reviewer: str, expected: Expected) -> Verdict:
    return Verdict(
        case=entry["case"],
        reviewer=reviewer,
        time=entry["time"],
        run=expected.run,
        model_hash=expected.model_hash,
        blind_grade=entry.get("blind_grade"),
        final_grade=entry.get("final_grade"),
        verdict=entry.get("verdict") or "",
        comment=_one_line(entry.get("comment", "")),
    )


def _one_line(text: str) -> str:
    """Text that fits into a CSV field whatever was typed: no control characters, single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _repeated(verdicts: Sequence[Verdict]) -> list[str]:
    """Cases that a reader judges twice, differently, in what is handed in now."""
    seen: dict[tuple[str, str], Verdict] = {}
    faults = []
    for verdict in verdicts:
        first = seen.setdefault((verdict.case, verdict.reviewer), verdict)
        if first != verdict:
            faults.append(f"case {verdict.case}: reader {verdict.reviewer} judges it twice; keep one of the two")
    return faults


def _append(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Put rows after those that are there, byte for byte; the table is replaced whole or not at all.

    Another program may have saved the table: rows take its order of columns and its separator, and leave other columns empty.
    """
    before = path.read_bytes().decode() if path.exists() else ""
    header = read_csv_rows(path, COLUMNS)[0] if before else COLUMNS
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, restval="", delimiter=separator_of(before), lineterminator="\n")
    if not before:
        writer.writeheader()
    elif not before.endswith("\n"):
        before += "\n"
    for verdict in verdicts:
        writer.writerow(asdict(verdict) | {name: spreadsheet_text(getattr(verdict, name)) for name in _WRITTEN})
    write_whole_text(path.resolve(), before + text.getvalue(), force=True)
