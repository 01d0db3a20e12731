"""What is kept of a finished run: one line per test image and a JSON, small enough for the repository, without names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcmt.trained.loaded import LoadedRun, grade_rows
from experiments.results.study import Network
from knee.data.prepare import KneeData
from knee.errors import UserError
from knee.evaluation.predictions import iterate_attention
from knee.io.files import write_json, write_text

Floats = NDArray[np.float64]


def predict_test(loaded: LoadedRun, data: KneeData, *, tta: bool) -> pd.DataFrame:
    """The graded test images: patient (a number), grade, and the probabilities and IoU of each network.

    Columns ``student_p0`` …, ``student_iou`` (empty where there is no mask); with ``tta`` also ``student_m0`` …, the
    probabilities of the horizontal flip.
    """
    rows = data.rows("test")
    rows = rows[data.grades[rows] >= 0]
    patients = np.unique(data.patients.iloc[rows].astype(str), return_inverse=True)[1]
    columns: dict[str, Any] = {"patient": patients, "grade": data.grades[rows]}
    for name, one in grade_rows(loaded, data, rows).items():
        columns |= {f"{name}_p{grade}": values for grade, values in enumerate(one.probabilities.T)}
        columns[f"{name}_iou"] = one.iou
    if tta:
        for name, network in loaded.networks.items():
            batches = iterate_attention(network, data.loader(rows), flip=True, **loaded.inference)
            flipped = np.concatenate([batch.flipped.cpu().numpy() for batch in batches if batch.flipped is not None])
            columns |= {f"{name}_m{grade}": values for grade, values in enumerate(flipped.T)}
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

    @property
    def commit(self) -> str:
        """The commit it was trained with; ``+`` marks changed files."""
        return f"{self.about['commit']}{'+' if self.about.get('changed_files') else ''}"

    @cached_property
    def patients(self) -> NDArray[np.int64]:
        """(N,) numbers of the patients."""
        return self.table["patient"].to_numpy(np.int64)

    @cached_property
    def grades(self) -> NDArray[np.int64]:
        """(N,)."""
        return self.table["grade"].to_numpy(np.int64)

    def probabilities(self, network: Network) -> Floats:
        """(N, K), rows sum to 1 in spite of the rounding; with TTA the mean over the image and its flip."""
        name, _, tta = network.partition(" + ")
        values = self._columns(f"{name}_p")
        return _normalised((values + self._columns(f"{name}_m")) / 2 if tta else values)

    def flipped(self, network: Network) -> Floats | None:
        """(N, K) of the horizontal flips; None where they were not predicted, or with TTA, which includes them."""
        if " + " in network or f"{network}_m0" not in self.table:
            return None
        return _normalised(self._columns(f"{network}_m"))

    def iou(self, network: Network) -> Floats | None:
        """(N,), NaN without a mask; None with TTA, which has two maps."""
        return None if " + " in network else self.table[f"{network}_iou"].to_numpy(np.float64)

    def _columns(self, start: str) -> Floats:
        names = [name for name in map(str, self.table) if name.startswith(start) and name.removeprefix(start).isdigit()]
        if not names:
            raise UserError(f"{self.name} has no columns {start}0 …; remove its files, and it is trained again")
        return self.table[names].to_numpy(np.float64)


def _normalised(values: Floats) -> Floats:
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def write_result(folder: Path, table: pd.DataFrame, about: dict[str, Any]) -> None:
    """NAME.csv, then NAME.json, which marks both as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{about['name']}.json"
    path.unlink(missing_ok=True)  # an earlier run's JSON does not belong to this CSV
    write_text(
        path.with_suffix(".csv"), table.to_csv(index=False, float_format="%.4f", lineterminator="\n"), force=True
    )
    write_json(path, {**about, "test_images": len(table)})


def read_result(folder: Path, name: str) -> Stored | None:
    """A stored run; None where there is none. Raises UserError where it is damaged."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        table = pd.read_csv(path.with_suffix(".csv"))
        complete = about["name"] == name and len(table) == about["test_images"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, and it is trained again") from error
    if not complete:
        raise UserError(f"{path} and its CSV do not belong together; remove both, and the run is trained again")
    return Stored(about, table)
