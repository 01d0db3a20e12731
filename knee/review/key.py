"""The key from case names to images. It stays with the data, in the run's ``local`` folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from knee.errors import Faults, counted
from knee.io.files import write_text as write_whole_text
from knee.io.plain import shown
from knee.io.tables import plain_text, read_table, shortened, spreadsheet_text


@dataclass(frozen=True)
class KeyedCase:
    """What is needed to turn the verdict on a case into a label, and to compare its readers with the model.

    ``image`` is as in the manifest.
    """

    case: str
    image: str
    patient: str
    split: str
    student_grade: int
    teacher_grade: int
    model_hash: str = ""
    """Hash of the model that predicted the grades (``ReviewRun.model_hash``); empty in keys of earlier versions."""


COLUMNS = tuple(field.name for field in fields(KeyedCase))
_MOST_DIGITS = 3
_REQUIRED = COLUMNS[:-1]  # keys of earlier versions have no model_hash


def write_key(path: Path, cases: Iterable[KeyedCase], *, force: bool = False) -> None:
    """Write the key as CSV, in the order given: the cases of the latest export last.

    Raises UserError where it exists (unless ``force``) or cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([spreadsheet_text(str(value)) for value in astuple(case)] for case in cases)
    write_whole_text(path, text.getvalue(), force=force)


def read_key(path: Path) -> dict[str, KeyedCase]:
    """The cases of a key by name, in its order.

    Raises UserError where the key cannot be read, Faults that list the errors in its rows.
    """
    table, faults = read_table(path, _REQUIRED)
    return dict(_checked(path, table.to_dict("records"), faults))


def _checked(path: Path, rows: Iterable[Mapping[Any, Any]], faults: list[str]) -> Iterator[tuple[str, KeyedCase]]:
    found: dict[str, KeyedCase] = {}
    for row in rows:
        at = f"{path.name} line {row['line']}:"
        texts = {name: plain_text(str(row.get(name, ""))) for name in COLUMNS}
        grades = [texts.pop(name) for name in ("student_grade", "teacher_grade")]
        if not all(grade.isdecimal() and len(grade) <= _MOST_DIGITS for grade in grades):
            faults.append(f"{at} grades {shown(grades)} are not whole numbers; export the review again")
        elif texts["case"] in found:
            faults.append(f"{at} case {shown(texts['case'])} appears twice; export the review again")
        else:
            student_grade, teacher_grade = map(int, grades)
            found[texts["case"]] = KeyedCase(**texts, student_grade=student_grade, teacher_grade=teacher_grade)
    if faults:
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'error')}")
    yield from found.items()
