"""``dcmt verify``: the metrics a run reports, computed again from its stored predictions and from its weights.

Stored predictions must give the stored metrics, intervals and differences to the last digit written. The weights, on
this machine, must give the same probabilities and the same overlap with the masks up to what other kernels and half
precision may change; the grades must be those of the manifest, and the images those of the split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcmt.apply import LoadedRun, grade_rows, load_data, load_run
from dcmt.prepare import KneeData
from dcmt.run import RunFolder, open_run
from knee.errors import Faults, UserError
from knee.evaluate import difference, report
from knee.files import typed
from knee.grades import GradeSet
from knee.predictions import Predictions

Say = Callable[[str], None]
LAST_DIGIT = 1.5e-6
"""Stored metrics have six digits."""
PROBABILITY_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""The largest difference of a probability between machines; other kernels sum in another order."""
OVERLAP_TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2, "fp16": 2e-2}
"""The largest difference of the mean IoU of attention and masks."""


def verify_command(options: argparse.Namespace, *, say: Say) -> int:
    """Verify the metrics of one split; Faults that name every number which does not hold."""
    run, _ = open_run(options.run)
    stored = _stored_metrics(run, options.split)
    loaded = _checkpoint_of(options.run, stored, options.device)
    table = _stored_predictions(run, options.split)
    patients = _patients(run, table)
    networks: list[str] = [name for name in ("student", "teacher") if name in stored]
    from_table = {name: predictions_of(table, name, loaded.grade_set) for name in networks}
    evaluated = _Evaluated(from_table, table["grade"], patients, loaded.grade_set)
    faults = [*evaluated.metric_faults(stored), *evaluated.difference_faults(stored)]
    compared = sum(len(_metrics_of(part)) for part in stored.values())
    say(f"{compared} metrics with their intervals recomputed from {run.predictions(options.split)}: {_verdict(faults)}")
    if not options.no_weights:
        weight_faults, furthest = _weight_faults(loaded, table, from_table, options.split)
        say(
            f"{len(table)} images graded again by the weights of step {loaded.checkpoint.step}: {_verdict(weight_faults)}; "
            f"the largest difference of a probability is {furthest:.2g}"
        )
        faults += weight_faults
    if faults:
        raise Faults(faults, summary=f"{options.run}: {len(faults)} numbers do not hold:")
    say(f"{options.run}: what metrics_{options.split}.json reports holds")
    return 0


def predictions_of(table: pd.DataFrame, network: str, grade_set: GradeSet) -> Predictions:
    """The predictions of one network as ``local/predictions_SPLIT.csv`` holds them: the teacher's columns have no prefix."""
    prefix = "" if network == "teacher" else f"{network}_"
    shares = [f"{prefix}p_{grade}" for grade in range(grade_set.count)]
    kinds = {"predicted": np.int64, "empty": np.bool_, "flip_changed": np.bool_}
    names = [field.name for field in fields(Predictions) if field.name not in ("rows", "probabilities")]
    missing = [name for name in (*shares, f"{prefix}predicted", f"{prefix}iou") if name not in table]
    if missing:
        raise UserError(f"the stored predictions lack the columns {', '.join(missing)}; evaluate the run anew")
    columns = {
        name: table[prefix + name].to_numpy(dtype=kinds.get(name, np.float64))
        for name in names
        if prefix + name in table
    }
    probabilities = table[shares].to_numpy(dtype=np.float32)
    return Predictions(rows=np.arange(len(table)), probabilities=probabilities, **columns)


@dataclass(frozen=True)
class _Evaluated:
    """Stored predictions of one split, and what they are compared with."""

    predictions: Mapping[str, Predictions]
    """By network."""
    grades: pd.Series
    patients: pd.Series
    grade_set: GradeSet

    def metric_faults(self, stored: Mapping[str, Any]) -> Iterator[str]:
        """Every stored metric or interval that the predictions do not give."""
        for name, one in self.predictions.items():
            how = _bootstrap(stored[name]["interval"])
            again = report(one, self.grades, self.patients, self.grade_set, **how)
            yield from _differing(f"{name} ", stored[name]["metrics"], again["metrics"])
            if again["confusion"] != stored[name]["confusion"]:
                yield f"{name} confusion: reported {stored[name]['confusion']}, the predictions give {again['confusion']}"

    def difference_faults(self, stored: Mapping[str, Any]) -> Iterator[str]:
        """Every stored difference of teacher and student that the predictions do not give."""
        name = "teacher_minus_student"
        if name in stored:
            student, teacher = self.predictions["student"], self.predictions["teacher"]
            how = _bootstrap(stored["teacher"]["interval"])
            again = difference(student, teacher, self.grades, self.patients, self.grade_set, **how)
            yield from _differing(f"{name} ", stored[name], again)


def _bootstrap(how: Mapping[str, Any]) -> dict[str, int]:
    return {"samples": int(how["samples"]), "seed": int(how["seed"])}


def _differing(what: str, reported: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Every value or bound of metrics that is not the same to the last digit."""
    for metric, entry in reported.items():
        for part in ("value", "low", "high"):
            value = found.get(metric, {}).get(part)
            if not _close(entry[part], value):
                yield f"{what}{metric} {part}: reported {entry[part]}, the stored predictions give {value}"


def _metrics_of(part: Any) -> Mapping[str, Any]:
    """The metrics in one part of a metrics file: a network's report, or a difference of two."""
    metrics = part.get("metrics", part) if isinstance(part, dict) else {}
    return {name: entry for name, entry in metrics.items() if isinstance(entry, dict) and "value" in entry}


def _weight_faults(
    loaded: LoadedRun, table: pd.DataFrame, stored: Mapping[str, Predictions], split: str
) -> tuple[list[str], float]:
    """What the weights and the manifest do not give of the stored predictions, and the largest difference of all."""
    data = load_data(loaded)
    rows = _rows_of(table, data, split)
    precision = loaded.checkpoint.precision
    tolerance = PROBABILITY_TOLERANCE[precision]
    faults = list(_grade_faults(table, data, rows))
    furthest = 0.0
    for name, found in grade_rows(loaded, data, rows, names=tuple(stored)).items():
        apart = np.abs(found.probabilities - stored[name].probabilities).max(1)
        furthest = max(furthest, float(apart.max()))
        faults += [
            f"{name} {case}: a probability differs by {gap:.3g}, more than {tolerance:g}"
            for case, gap in zip(table["case"], apart, strict=True)
            if gap > tolerance
        ]
        before, after = _mean_overlap(stored[name]), _mean_overlap(found)
        if abs(before - after) > OVERLAP_TOLERANCE[precision] or np.isnan(before) != np.isnan(after):
            faults.append(
                f"{name}: the mean IoU of attention and masks is {before:.4f} as stored, {after:.4f} by the weights"
            )
    return faults, furthest


def _grade_faults(table: pd.DataFrame, data: KneeData, rows: Any) -> Iterator[str]:
    """Cases that were compared with another grade than the manifest has."""
    recorded = data.grades[rows]
    used = table["grade"].fillna(-1).to_numpy(dtype=np.int64)
    for case, was, now in zip(table["case"], used, recorded, strict=True):
        if was != now:
            yield f"{case}: the stored predictions hold grade {was}, the manifest {now} (-1: none)"


def _mean_overlap(predictions: Predictions) -> float:
    """NaN where no image has a mask."""
    known = predictions.iou[~np.isnan(predictions.iou)]
    return float(known.mean()) if len(known) else float("nan")


def _rows_of(table: pd.DataFrame, data: KneeData, split: str) -> Any:
    wanted = data.rows(split)
    places = dict(zip(data.manifest.table["image"].iloc[wanted], wanted.tolist(), strict=True))
    foreign = [image for image in table["image"] if image not in places]
    if foreign or len(table) != len(wanted) or table["image"].duplicated().any():
        raise UserError(
            f"the stored predictions are of {len(table)} images, the {split} split has {len(wanted)}"
            + (f"; {foreign[0]} is not one of them" if foreign else "")
            + "; put the data back as they were, or evaluate the run anew"
        )
    return np.array([places[image] for image in table["image"]], dtype=np.int64)


def _stored_metrics(run: RunFolder, split: str) -> dict[str, Any]:
    path = run.metrics(split)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "teacher" not in values or not isinstance(values["checkpoint_step"], int):
            raise ValueError("no metrics of a teacher")
    except OSError as error:
        raise UserError(
            f"{path} is not there; evaluate first: dcmt evaluate {typed(run.path)} --split {split}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the metrics of an evaluation ({error}); evaluate the run anew"
        ) from error
    return dict(values)


def _checkpoint_of(path: Path, stored: Mapping[str, Any], device: str) -> LoadedRun:
    step = stored["checkpoint_step"]
    for which in ("best", "last"):
        loaded = load_run(path, checkpoint=which, device=device)
        if loaded.checkpoint.step == step:
            return loaded
    raise UserError(
        f"{path}: the metrics are of step {step}, whose checkpoint is no longer there; evaluate the run anew"
    )


def _stored_predictions(run: RunFolder, split: str) -> pd.DataFrame:
    path = run.predictions(split)
    try:
        table = pd.read_csv(path, dtype={"case": str, "image": str}).astype({"grade": "Int64"})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate the run anew") from error
    if not {"case", "image", "grade"} <= set(table):
        raise UserError(f"{path} lacks the columns case, image and grade; evaluate the run anew")
    return table


def _patients(run: RunFolder, table: pd.DataFrame) -> pd.Series:
    """(N,) patients of the stored predictions, by the run's own key."""
    path = run.local / "cases.csv"
    try:
        key = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("image")["patient"]
        return key.loc[table["image"]].reset_index(drop=True)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} does not name the patients of the stored predictions ({error})") from error


def _close(reported: float | None, found: float | None) -> bool:
    if reported is None or found is None:
        return reported is found
    return abs(reported - found) <= LAST_DIGIT


def _verdict(faults: list[str]) -> str:
    return "all the same" if not faults else f"{len(faults)} differ"
