"""What is kept of a finished run: a line a test image and a JSON, small enough for the repository, naming nobody."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from dcmt.loaded import LoadedRun, grade_rows
from experiments.results.study import Network
from knee.data.prepare import KneeData
from knee.errors import UserError
from knee.io.files import write_json, write_text
from knee.task import Grader, Grading

Floats = NDArray[np.float64]
_DIGITS = 4


class Mirrored(nn.Module):
    """Grades the mirror images; the class maps are mirrored back, so that they lie on the images."""

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader

    def forward(self, images: Tensor) -> Grading:
        """Images (B, 1, H, W) in [0, 1]."""
        logits, maps = self.grader(images.flip(3))
        return Grading(logits, maps.flip(3))


def grade_test(loaded: LoadedRun, data: KneeData, *, mirror: bool) -> pd.DataFrame:
    """The graded test images: patient (a number), grade, and of each network its probabilities and IoU.

    Columns ``student_p0`` …, ``student_iou`` (empty where there is no mask), with ``mirror`` also ``student_m0`` … of
    the mirror image.
    """
    rows = data.rows("test")
    rows = rows[data.grades[rows] >= 0]
    patients = np.unique(data.patients.iloc[rows].astype(str), return_inverse=True)[1]
    columns: dict[str, Any] = {"patient": patients, "grade": data.grades[rows]}
    for name, one in grade_rows(loaded, data, rows).items():
        columns |= {f"{name}_p{grade}": values for grade, values in enumerate(one.probabilities.T)}
        columns[f"{name}_iou"] = one.iou
    if mirror:
        networks = {name: Mirrored(network) for name, network in loaded.networks.items()}
        for name, one in grade_rows(replace(loaded, networks=networks), data, rows).items():
            columns |= {f"{name}_m{grade}": values for grade, values in enumerate(one.probabilities.T)}
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Stored:
    """A stored run."""

    about: dict[str, Any]
    table: pd.DataFrame

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.about["name"])

    @cached_property
    def patients(self) -> NDArray[np.int64]:
        """(N,) numbers of the patients."""
        return self.table["patient"].to_numpy(np.int64)

    @cached_property
    def grades(self) -> NDArray[np.int64]:
        """(N,)."""
        return self.table["grade"].to_numpy(np.int64)

    def probabilities(self, network: Network) -> Floats:
        """(N, K), rows summing to 1 in spite of the rounding; with mirror the mean of image and mirror image."""
        name, _, mirror = network.partition(" + ")
        values = self._columns(f"{name}_p")
        if mirror:
            values = (values + self._columns(f"{name}_m")) / 2
        return np.asarray(values / values.sum(axis=1, keepdims=True))

    def mirrored(self, network: Network) -> Floats | None:
        """(N, K) of the mirror images; None where they were not graded, or count already."""
        if " + " in network or f"{network}_m0" not in self.table:
            return None
        values = self._columns(f"{network}_m")
        return np.asarray(values / values.sum(axis=1, keepdims=True))

    def iou(self, network: Network) -> Floats | None:
        """(N,), NaN without a mask; None for mirrored pairs, which have two maps."""
        return None if " + " in network else self.table[f"{network}_iou"].to_numpy(np.float64)

    def _columns(self, start: str) -> Floats:
        names = [name for name in map(str, self.table) if name.startswith(start) and name.removeprefix(start).isdigit()]
        if not names:
            raise UserError(f"{self.name} holds no columns {start}0 …; run it again without --tables-only")
        return self.table[names].to_numpy(np.float64)


def write_result(folder: Path, table: pd.DataFrame, about: dict[str, Any]) -> None:
    """NAME.csv, then NAME.json, which says that both are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{about['name']}.json").unlink(missing_ok=True)  # that of an earlier run says nothing of this CSV
    text = table.to_csv(index=False, float_format=f"%.{_DIGITS}f", lineterminator="\n")
    write_text(folder / f"{about['name']}.csv", text, force=True)
    write_json(folder / f"{about['name']}.json", about)


def read_result(folder: Path, name: str) -> Stored | None:
    """A stored run; None where there is none. Raises UserError where it is damaged."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        table = pd.read_csv(path.with_suffix(".csv"))
        whole = about["name"] == name and len(table) == about["test_images"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, and it is run again") from error
    if not whole:
        raise UserError(f"{path} and its CSV do not belong together; remove both, and the run is done again")
    return Stored(about, table)
