"""The input of a command: a loaded run, its data, and the rows of one split."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dcmt.trained.loaded import LoadedRun, load_data, load_run
from dcmt.validation import spread_over_grades
from knee.data.prepare import KneeData
from knee.errors import UserError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """A run, its data, and some rows of a split."""

    loaded: LoadedRun
    data: KneeData
    rows: Rows
    split: str

    @cached_property
    def grades(self) -> NDArray[np.int64]:
        """(N,) of all rows, −1 where ungraded. For the split ``unlabeled`` all are −1, even if the manifest has grades."""
        return np.full(len(self.data.grades), -1) if self.split == "unlabeled" else self.data.grades

    @cached_property
    def cases(self) -> Mapping[int, str]:
        """The case name of each row, which may be shared."""
        return dict(zip(self.rows.tolist(), self.data.cases(self.rows), strict=True))

    def spread(self, count: int) -> Selection:
        """At most ``count`` of the rows, spread over the grades."""
        return replace(self, rows=spread_over_grades(self.rows, self.grades, count=min(count, len(self.rows))))


def select(options: argparse.Namespace, *, labeled: bool = False) -> Selection:
    """The run and split given by a command's options; with ``labeled``, ``train`` has only rows trained on with their grade.

    Raises UserError if there are no rows.
    """
    loaded = load_run(
        options.run, checkpoint=options.checkpoint, device=options.device, external_model=options.external_model
    )
    data = load_data(loaded)
    rows = data.labeled if labeled and options.split == "train" else data.rows(options.split)
    if not len(rows):
        raise UserError(f"there are no {options.split} images; choose another --split")
    return Selection(loaded, data, rows, options.split)
