"""Further grade sets of a joint run: each is a column of the manifest with its own grades, and has heads of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knee.data.manifest import parsed_grades
from knee.errors import Faults, UserError
from knee.grades import GradeSet, load_grade_set
from knee.io.tables import shortened


@dataclass(frozen=True)
class FurtherGrades:
    """The grades of S further columns in N rows."""

    columns: tuple[str, ...]
    sets: tuple[GradeSet, ...]
    grades: NDArray[np.int64]
    """(N, S), −1 where there is none."""


def grade_columns(text: str) -> dict[str, GradeSet]:
    """The columns and grade sets of ``joint.further_grades``. Raises UserError.

    >>> [(column, grades.count) for column, grades in grade_columns("defect=cartilage, other=kl").items()]
    [('defect', 3), ('other', 5)]
    """
    found: dict[str, GradeSet] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        column, equals, source = (one.strip() for one in part.partition("="))
        if not (column and equals and source):
            raise UserError(
                f"joint.further_grades: '{part}' is not COLUMN=GRADE_SET; write for example defect=cartilage"
            )
        if column in found or column == "grade":
            raise UserError(f"joint.further_grades: column '{column}' has a grade set already; give each column once")
        found[column] = load_grade_set(source)
    return found


def read_further_grades(table: pd.DataFrame, text: str, *, where: str) -> FurtherGrades:
    """The further grades of a manifest's rows. Raises UserError for a column that is not there; Faults for bad grades."""
    sets = grade_columns(text)
    grades = np.full((len(table), len(sets)), -1, np.int64)
    faults: list[str] = []
    for place, (column, grade_set) in enumerate(sets.items()):
        if column not in table:
            raise UserError(f"{where}: has no column '{column}'; join it with dcmt manifest … --table {column}")
        fields = table[column].astype(str)
        found, reasons = parsed_grades(fields, grade_set)
        grades[:, place] = found.fillna(-1)
        wrong = fields.isin(list(reasons))
        faults += [
            f"line {line}: column '{column}': {reasons[text]}"
            for line, text in zip(table["line"][wrong], fields[wrong], strict=True)
        ]
    if faults:
        raise Faults(shortened(faults), summary=f"{where}: further grades that cannot be read; fix them:")
    return FurtherGrades(tuple(sets), tuple(sets.values()), grades)
