"""``dcmt verify``: recompute the metrics of a run from its stored predictions and from its weights.

The stored predictions must give the stored metrics, intervals and differences to the last written digit. The weights must give
the same probabilities and the same overlap with the masks on this machine, up to differences from other kernels and half
precision. Grades and patients must be those of the manifest, and the images those of the split.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from dcmt.trained.loaded import (
    LoadedRun,
    best_reachable,
    grade_rows,
    load_data,
    load_run,
    masks_by_segmenter,
    with_prior_correction,
)
from dcmt.trained.reference import for_inference, is_temperature
from knee.data.prepare import KneeData
from knee.engine.run import RunFolder, is_trained, open_run
from knee.errors import Faults, UserError
from knee.evaluation.predictions import Predictions
from knee.evaluation.report import difference, report
from knee.grades import GradeSet
from knee.io.files import typed
from knee.io.plain import read_json, shown
from knee.nn.temperature import tempered

log = logging.getLogger(__name__)

_MOST_SAMPLES = 1_000_000
_LONGEST_NAME = 4096
LAST_DIGIT = 1.5e-6
"""Tolerance for stored metrics, which have six digits."""
PROBABILITY_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Largest allowed difference of a probability between machines, whose kernels sum in different orders."""
GRID_TOLERANCE = 2e-3
"""The same for the best IoU that the attention grid can reach, which is found by optimization."""
OVERLAP_TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2, "fp16": 2e-2}
"""Largest allowed difference of the mean IoU of attention and masks."""


def verify_command(options: argparse.Namespace) -> int:
    """Verify the metrics of one split; raises Faults with every value that differs."""
    run, _ = open_run(options.run)
    stored = _stored_metrics(run, options.split)
    loaded = _checkpoint_of(options, stored)
    networks: list[str] = [name for name in ("student", "teacher") if name in stored]
    table = _stored_predictions(run, options.split, networks, loaded.grade_set)
    from_table = {name: predictions_of(table, name, loaded.grade_set) for name in networks}
    evaluated = _Evaluated(from_table, table["grade"], table["patient"], loaded.grade_set)
    try:
        faults = [*_head_faults(stored, options.split, loaded.kind), *evaluated.faults(stored)]
        faults += _temperature_faults(stored, loaded)
        temperatures = {name: _temperature(stored[name]) or 1.0 for name in networks}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.metrics(options.split)} is not a valid metrics file ({type(error).__name__}: {error}); "
            "run dcmt evaluate again"
        ) from error
    compared = sum(len(_metrics_of(part)) for part in stored.values())
    log.info(
        f"{compared} metrics with their intervals recomputed from {run.predictions(options.split)}: {_verdict(faults)}"
    )
    if not options.no_weights:
        weight_faults, furthest = _weight_faults(loaded, table, from_table, temperatures, stored, options.split)
        log.info(
            f"{len(table)} images graded again with the weights of step {loaded.checkpoint.step}: {_verdict(weight_faults)}; "
            f"largest difference of a probability: {furthest:.2g}"
        )
        faults += weight_faults
    if faults:
        raise Faults(faults, summary=f"{options.run}: {len(faults)} reported values cannot be reproduced:")
    log.info(f"{options.run}: all values in metrics_{options.split}.json were reproduced")
    return 0


def predictions_of(table: pd.DataFrame, network: str, grade_set: GradeSet) -> Predictions:
    """The predictions of one network in ``local/predictions_SPLIT.csv``, where the teacher's columns have no prefix."""
    prefix = "" if network == "teacher" else f"{network}_"
    shares = [f"{prefix}p_{grade}" for grade in range(grade_set.count)]
    kinds = {"predicted": np.int64, "empty": np.bool_, "flip_changed": np.bool_}
    kept = [field for field in fields(Predictions) if field.name not in ("rows", "probabilities")]
    needed = [prefix + field.name for field in kept if field.default is MISSING]
    missing = [name for name in (*shares, *needed) if name not in table]
    if missing:
        raise UserError(f"the stored predictions lack the columns {', '.join(missing)}; run dcmt evaluate again")
    columns = {
        field.name: table[prefix + field.name].to_numpy(dtype=kinds.get(field.name, np.float64))
        for field in kept
        if prefix + field.name in table
    }
    probabilities = table[shares].to_numpy(dtype=np.float32)
    return Predictions(rows=np.arange(len(table)), probabilities=probabilities, **columns)


@dataclass(frozen=True)
class _Evaluated:
    """Stored predictions of one split, with grades and patients."""

    predictions: Mapping[str, Predictions]
    """By network."""
    grades: pd.Series
    patients: pd.Series
    grade_set: GradeSet

    def faults(self, stored: Mapping[str, Any]) -> Iterator[str]:
        """Reported values of the networks and their difference that the stored predictions do not reproduce."""
        for name, one in self.predictions.items():
            how = _bootstrap(stored[name]["interval"])
            temperature = _temperature(stored[name])
            again = report(one, self.grades, self.patients, self.grade_set, **how, temperature=temperature)
            yield from _differing(name, stored[name], again)
        name = "teacher_minus_student"
        if "student" in self.predictions:
            student, teacher = self.predictions["student"], self.predictions["teacher"]
            how = _bootstrap(stored["teacher"]["interval"])
            again = difference(student, teacher, self.grades, self.patients, self.grade_set, **how)
            yield from _differing(name, stored[name], again)


def _head_faults(stored: Mapping[str, Any], split: str, kind: str) -> Iterator[str]:
    """Wrong values in the header of the metrics file."""
    for name, found in (("split", split), ("trained_on", split == "train" and is_trained(kind))):
        if stored.get(name) != found:
            yield f"{name}: reported {shown(stored.get(name))}, but it is {found}"


def _temperature(part: Mapping[str, Any]) -> float | None:
    """The temperature by which a network's stored predictions were calibrated."""
    value = part.get("temperature")
    if value is not None and not is_temperature(value):
        raise ValueError(f"temperature is {shown(value)}")
    return value


def _temperature_faults(stored: Mapping[str, Any], loaded: LoadedRun) -> Iterator[str]:
    """Temperatures in a metrics file that are not those of the run."""
    for name in loaded.bare:
        used = _temperature(stored[name]) if name in stored else None
        if used is not None and loaded.reference is not None and used != loaded.temperature(name):
            yield f"{name} temperature: reported {used}, the run has {loaded.temperature(name)}; run dcmt evaluate again"


def _bootstrap(how: Mapping[str, Any]) -> dict[str, int]:
    samples, seed = how["samples"], how["seed"]
    if type(samples) is not int or type(seed) is not int or not (1 <= samples <= _MOST_SAMPLES and seed >= 0):
        raise ValueError(f"{shown(samples)} bootstrap samples from seed {shown(seed)}")
    return {"samples": samples, "seed": seed}


def _differing(what: str, reported: Any, found: Any) -> Iterator[str]:
    """Every entry of a report that differs, or is missing on one side; numbers are compared to the last digit."""
    if isinstance(found, dict) and isinstance(reported, dict):
        for name in (*found, *(name for name in reported if name not in found)):
            inner = what if name == "metrics" else f"{what} {name}"
            yield from _differing(inner, reported.get(name), found.get(name))
    elif not _close(reported, found):
        computed = shown(found) if isinstance(found, (dict, list)) else found
        yield f"{what}: reported {shown(reported)}, the stored predictions give {computed}"


def _metrics_of(part: Any) -> Mapping[str, Any]:
    """The metrics in one part of a metrics file: a network's report, or a difference of two."""
    metrics = part.get("metrics", part) if isinstance(part, dict) else {}
    if not isinstance(metrics, dict):
        return {}
    return {name: entry for name, entry in metrics.items() if isinstance(entry, dict) and "value" in entry}


def _weight_faults(
    loaded: LoadedRun,
    table: pd.DataFrame,
    stored: Mapping[str, Predictions],
    temperatures: Mapping[str, float],
    reported: Mapping[str, Any],
    split: str,
) -> tuple[list[str], float]:
    """Stored values that weights and manifest do not reproduce, and the largest difference of a probability.

    Probabilities are compared as they were before calibration, since a high temperature makes all of them alike.
    """
    loaded = replace(loaded, networks=for_inference(loaded.bare, {}, flip_tta=loaded.flip_tta))
    data = load_data(loaded)
    if reported.get("prior_corrected") is True:
        loaded = with_prior_correction(loaded, data)
    rows = _rows_of(table, data, split)
    precision = loaded.checkpoint.precision
    tolerance = PROBABILITY_TOLERANCE[precision]
    faults = list(_fact_faults(table, data, rows))
    grid, now = reported.get("best_iou_of_grid"), best_reachable(loaded, data, data.rows(split))
    if not _close(grid, now, GRID_TOLERANCE):
        faults.append(f"best_iou_of_grid: reported {shown(grid)}, the masks give {now}")
    for name, found in (
        ("masks_by_segmenter", masks_by_segmenter(data, data.rows(split))),
        ("left_out", data.split.absent[split]),
    ):
        if reported.get(name, 0) != found:
            faults.append(f"{name}: reported {shown(reported.get(name, 0))}, but by manifest and split it is {found}")
    furthest = 0.0
    for name, graded in grade_rows(loaded, data, rows, names=tuple(stored)).items():
        before = tempered(stored[name].probabilities, 1 / temperatures[name])
        gaps = np.abs(graded.probabilities - before).max(1)
        furthest = max(furthest, float(gaps.max()))
        faults += [
            f"{name} {case}: a probability differs by {gap:.3g}, more than {tolerance:g}"
            for case, gap in zip(table["case"], gaps, strict=True)
            if gap > tolerance
        ]
        was, now = _mean_overlap(stored[name]), _mean_overlap(graded)
        if abs(was - now) > OVERLAP_TOLERANCE[precision] or np.isnan(was) != np.isnan(now):
            faults.append(
                f"{name}: the mean IoU of attention and masks is {was:.4f} as stored, {now:.4f} with the weights"
            )
    return faults, furthest


def _fact_faults(table: pd.DataFrame, data: KneeData, rows: Any) -> Iterator[str]:
    """Cases whose stored grade or patient differs from the manifest."""
    grades = table["grade"].fillna(-1).to_numpy(dtype=np.int64)
    facts = (("grade", grades, data.grades[rows]), ("patient", table["patient"], data.patients.iloc[rows]))
    for name, used, recorded in facts:
        for case, was, now in zip(table["case"], used, recorded, strict=True):
            if was != now:
                missing = " (-1: none)" if name == "grade" else ""
                yield f"{case}: the stored predictions hold {name} {was}, the manifest {now}{missing}"


def _mean_overlap(predictions: Predictions) -> float:
    """Mean IoU of attention and masks; NaN if no image has a mask."""
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
            + "; restore the original data, or run dcmt evaluate again"
        )
    return np.array([places[image] for image in table["image"]], dtype=np.int64)


def _stored_metrics(run: RunFolder, split: str) -> dict[str, Any]:
    path = run.metrics(split)
    try:
        values = read_json(path)
        if "teacher" not in values or type(values["checkpoint_step"]) is not int or values["checkpoint_step"] < 0:
            raise ValueError("no metrics of a teacher")
    except OSError as error:
        raise UserError(
            f"{path} does not exist; evaluate first: dcmt evaluate {typed(run.path)} --split {split}"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is not a valid metrics file ({error!s:.200}); run dcmt evaluate again") from error
    return values


def _checkpoint_of(options: argparse.Namespace, stored: Mapping[str, Any]) -> LoadedRun:
    path, step = options.run, stored["checkpoint_step"]
    if not RunFolder(path).checkpoints.holds(step):
        raise UserError(
            f"{path}: the metrics are of step {step}, whose checkpoint no longer exists; run dcmt evaluate again"
        )
    return load_run(
        path,
        checkpoint=step,
        device=options.device,
        flip_tta=stored.get("flip_tta") is True,
        external_model=options.external_model,
    )


def _stored_predictions(run: RunFolder, split: str, networks: Sequence[str], grade_set: GradeSet) -> pd.DataFrame:
    """The table ``local/predictions_SPLIT.csv``. Raises UserError if it is not a valid table of predictions."""
    path = run.predictions(split)
    names = dict.fromkeys(("case", "image", "patient"), str)
    try:
        table = pd.read_csv(path, converters=names).astype({"grade": "Int64"})
        if missing := [name for name in names if name not in table]:
            raise ValueError(f"no column {', '.join(missing)}")
        if longest := [name for name in names if (table[name].str.len() > _LONGEST_NAME).any()]:
            raise ValueError(f"a text of more than {_LONGEST_NAME} letters in {', '.join(longest)}")
        _check_values(table, networks, grade_set.count)
        for name in networks:
            columns = vars(predictions_of(table, name, grade_set)).values()
            if any(np.isinf(column).any() for column in columns if column is not None):
                raise ValueError(f"an infinite number of the {name}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({error!s:.200}); run dcmt evaluate again") from error
    return table


def _check_values(table: pd.DataFrame, networks: Sequence[str], count: int) -> None:
    """Raises ValueError or KeyError if the table is not a valid table of predictions."""
    if table.empty:
        raise ValueError("no rows")
    if not table["grade"].dropna().between(0, count - 1).all():
        raise ValueError(f"a grade that is not 0 to {count - 1}")
    for name in networks:
        prefix = "" if name == "teacher" else f"{name}_"
        shares = table[[f"{prefix}p_{grade}" for grade in range(count)]].to_numpy(np.float64)
        if not (np.isfinite(shares).all() and np.allclose(shares.sum(1), 1, atol=1e-3)):
            raise ValueError(f"probabilities of the {name} that do not sum to 1")
        if not table[f"{prefix}predicted"].isin(range(count)).all():
            raise ValueError(f"a predicted grade of the {name} that is not 0 to {count - 1}")


def _close(reported: Any, found: Any, tolerance: float = LAST_DIGIT) -> bool:
    if isinstance(found, float) and isinstance(reported, (int, float)):
        return abs(reported - found) <= tolerance
    return bool(reported == found)


def _verdict(faults: list[str]) -> str:
    return "all equal" if not faults else f"{len(faults)} differ"
