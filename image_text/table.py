"""Columns of a manifest as inputs: numbers and categories. Grades and findings that determine them are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knee.errors import UserError
from knee.intake.columns import is_grade_column


def column_names(text: str, *, option: str = "table.columns") -> tuple[str, ...]:
    """Names separated by commas. Raises UserError for a name given twice, and for a column that holds grades.

    >>> column_names("age, sex")
    ('age', 'sex')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option}: '{name}' is given twice; keep one")
        if is_grade_column(name):
            raise UserError(
                f"{option}: '{name}' is a grade, or a finding that determines it, so it is no input; leave it out"
            )
    return names


def require_columns(table: pd.DataFrame, columns: tuple[str, ...], *, where: str) -> None:
    """Raises UserError if the manifest lacks a column."""
    for name in columns:
        if name not in table:
            raise UserError(
                f"{where}: has no column '{name}'; join it with dcmt manifest … --table {name}, or leave it out"
            )


def covariate_groups(table: pd.DataFrame, columns: tuple[str, ...]) -> NDArray[np.int64]:
    """(N,) equal numbers for rows with equal values in all ``columns``; without columns, one group."""
    if not columns:
        return np.zeros(len(table), np.int64)
    groups = table[list(columns)].astype(str).groupby(list(columns), sort=False)
    return np.asarray(groups.ngroup(), dtype=np.int64)
