"""Verdicts of readers, as files and tables, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

from knee.review.verdicts import read_verdicts
from knee.review.verdicts_file import Expected, Verdict

EXPECTED = Expected("run", "hash", 5, {"c1", "c2", "c3"})


def _entry(case: str = "c1", **changes: object) -> dict[str, object]:
    entry = {"case": case, "blind_grade": 2, "final_grade": 2, "verdict": "agree", "comment": ""}
    return entry | {"time": "2025-03-01T12:00:00.000Z"} | changes


def _file(path: Path, *entries: object, **changes: object) -> Path:
    head = {"schema": "knee-review-verdicts/1", "run": "run", "model_hash": "hash", "grades": 5, "reviewer": "R1"}
    path.write_text(json.dumps(head | {"verdicts": list(entries)} | changes))
    return path


def _read(path: Path) -> list[Verdict]:
    return read_verdicts(path, run=EXPECTED.run, grades=EXPECTED.grades)


_OWN = "case,reviewer,time,run,model_hash,blind_grade,final_grade,verdict,comment"


GRADES = {"a": "1", "b": "", "c": "3", "d": "", "e": "0", "f": "2"}


def _verdict(case: str, grade: int | None, reviewer: str = "R1", verdict: str = "agree", day: int = 1) -> Verdict:
    return Verdict(case, reviewer, f"2025-03-0{day}T12:00:00Z", "run", "hash", grade, grade, verdict, "")
