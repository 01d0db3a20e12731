"""Table columns as numbers and hashed categories, with gaps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from image_text.table import covariate_groups, require_columns
from knee.errors import Faults, UserError

CATEGORIES = 64
"""Categories of a column are hashed into this many; an unknown one at prediction is whichever it falls on."""
_GAPS = frozenset({"", "na", "n/a", "nan", "none", ".", "-", "unknown", "missing"})
_MOST_FAULTS = 5


@dataclass(frozen=True)
class Cells:
    """The cells of C table columns in N rows."""

    columns: tuple[str, ...]
    numbers: NDArray[np.float32]
    """(N, C), NaN where there is none, and in columns of categories."""
    categories: NDArray[np.int64]
    """(N, C) in [0, CATEGORIES), −1 where there is none, and in columns of numbers."""
    groups: NDArray[np.int64]
    """(N,) equal numbers for rows with equal cells; −1 for rows without any."""

    @property
    def numeric(self) -> NDArray[np.bool_]:
        """(C,) which columns hold numbers."""
        named: NDArray[np.bool_] = np.any(self.categories >= 0, axis=0)
        return ~named

    def scales(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(C,) mean and deviation of the numbers in ``rows`` (0 and 1 without any, or where all are equal)."""
        chosen = self.numbers[rows].astype(np.float64)
        known = ~np.isnan(chosen)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, chosen, 0).sum(0) / count
        variance = np.where(known, (chosen - mean) ** 2, 0).sum(0) / count
        return mean.astype(np.float32), np.where(variance > 0, np.sqrt(variance), 1).astype(np.float32)


def read_cells(table: pd.DataFrame, columns: tuple[str, ...], *, where: str) -> Cells:
    """The cells of a manifest's table. A column is numeric if all of its cells are numbers, else of categories.

    Raises:
        UserError: a column is not there, or has no cell at all; Faults: a column that mixes numbers and texts.
    """
    require_columns(table, columns, where=where)
    count = len(table)
    numbers = np.full((count, len(columns)), np.nan, np.float32)
    categories = np.full((count, len(columns)), -1, np.int64)
    faults: list[str] = []
    for place, name in enumerate(columns):
        texts = [str(text).strip() for text in table[name]]
        known = np.array([text.casefold() not in _GAPS for text in texts])
        if not known.any():
            raise UserError(f"{where}: column '{name}' is empty in every row; leave it out of table.columns")
        values = [_number(text) if there else np.nan for text, there in zip(texts, known, strict=True)]
        numeric = np.isfinite(values)
        if numeric.any() and (known & ~numeric).any():
            faults += _mixed(name, table["line"].tolist(), known & ~numeric)
        elif numeric.any():
            numbers[:, place] = values
        else:
            categories[known, place] = [_hashed(text) for text, there in zip(texts, known, strict=True) if there]
    if faults:
        raise Faults(
            faults, summary=f"{where}: columns that mix numbers and texts; write numbers, or leave cells empty:"
        )
    present = ~np.isnan(numbers) | (categories >= 0)
    groups = np.where(present.any(1), covariate_groups(table, columns), -1)
    return Cells(columns, numbers, categories, groups)


def _mixed(name: str, lines: list[int], odd: NDArray[np.bool_]) -> list[str]:
    places = [line for line, is_odd in zip(lines, odd, strict=True) if is_odd]
    return [f"line {line}: column '{name}' has a text among numbers" for line in places[:_MOST_FAULTS]]


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return np.nan


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % CATEGORIES
