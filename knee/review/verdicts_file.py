"""Verdicts files: the JSON file that a reader downloads from the review page, checked as a whole."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from knee.errors import UserError
from knee.io.plain import shown

SCHEMA = "knee-review-verdicts/1"
VERDICTS = ("agree", "disagree", "unsure", "bad_image")
GRADES = ("blind_grade", "final_grade")
"""The fields of a verdict that hold grades."""
TIME_LIKE = "2025-03-01T12:00:00Z"
_LARGEST_FILE = 50_000_000
_LONGEST_COMMENT = 10_000  # characters; a CSV field holds 131,072, the page's comment field 2,000


@dataclass(frozen=True)
class Verdict:
    """One reader's verdict on one case."""

    case: str
    reviewer: str
    time: str
    """Time of the last change, ISO 8601 with time zone."""
    run: str
    model_hash: str
    blind_grade: int | None
    """The grade given before the model's output was shown; None where the case was not read blind."""
    final_grade: int | None
    verdict: str
    """One of ``VERDICTS`` on the model's grade and map, or empty."""
    comment: str

    @property
    def says_anything(self) -> bool:
        """Whether it has a grade, a verdict or a comment; false if all of them were withdrawn."""
        return self.blind_grade is not None or self.final_grade is not None or bool(self.verdict or self.comment)


@dataclass(frozen=True)
class Expected:
    """The run, model, grades and cases that a verdicts file must match."""

    run: str
    model_hash: str
    grades: int
    """K."""
    cases: Collection[str]


def verdicts_document(verdicts: Sequence[Verdict], *, grade_set: str, grades: int) -> dict[str, Any]:
    """One reader's verdicts in the format that the review page saves, for simulated readings or those of another tool.

    ``grade_set`` is its name, ``grades`` K. Write the result as JSON to import it. Raises UserError unless the verdicts are
    of one reader, run and model.
    """
    heads = {(verdict.reviewer, verdict.run, verdict.model_hash) for verdict in verdicts}
    if len(heads) != 1:
        raise UserError(f"a verdicts file is of one reader, run and model; these are of {len(heads)}")
    ((reviewer, run, model_hash),) = heads
    copied = ("case", "blind_grade", "final_grade", "comment", "time")
    return {
        "schema": SCHEMA,
        "run": run,
        "model_hash": model_hash,
        "grade_set": grade_set,
        "grades": grades,
        "reviewer": reviewer,
        "verdicts": [
            {name: getattr(verdict, name) for name in copied} | {"verdict": verdict.verdict or None}
            for verdict in verdicts
        ],
    }


def read_verdicts_file(path: Path, expected: Expected, faults: list[str]) -> list[Verdict]:
    """The verdicts of one file; its errors are added to ``faults``."""
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
        hint = "import it into that run"
        if document.get("model_hash") == expected.model_hash:
            hint = "it has this run's model: if the run's folder was renamed, rename it back; if not, " + hint
        faults.append(f"is of run {shown(document.get('run'))}, not {expected.run!r}; {hint}")
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
    for name in GRADES:
        grade = entry.get(name)
        # In Python bool is an int, but true is not a grade.
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
            f"case {shown(case)}: comment has {len(comment)} characters, at most {_LONGEST_COMMENT} are allowed; shorten it"
        )
    if not is_time(entry.get("time")):
        faults.append(f"case {shown(case)}: time {shown(entry.get('time'))} is not like {TIME_LIKE}")
    return faults


def is_time(value: Any) -> bool:
    """Whether it is an ISO 8601 time with time zone, in ASCII."""
    # fromisoformat accepts any character between date and time, even a lone surrogate, which cannot be written to a file.
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
    """Text as one line for a CSV field: no control characters, single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
