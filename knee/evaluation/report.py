"""Quality of predictions: reports with intervals over patients, paired differences, and tables by case.

Student and teacher, and any two methods, are compared on the same cases with the same bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from knee import metrics
from knee.attention import attention_mask
from knee.evaluation.intervals import intervals
from knee.evaluation.predictions import Predictions
from knee.nn.flips import jensen_shannon
from knee.nn.temperature import tempered

if TYPE_CHECKING:
    from knee.grades import GradeSet

Floats = NDArray[np.float64]
BIASED = ("ece", "ece_uncalibrated")
"""Metrics that resampling makes larger; their intervals are moved back by the estimated bias."""
_OF_ALL_CASES = ("empty_maps", "entropy", "flip_changed", "flip_divergence")


def report(
    predictions: Predictions,
    grades: ArrayLike,
    patients: ArrayLike,
    grade_set: GradeSet,
    *,
    samples: int = 1000,
    seed: int = 0,
    temperature: float | None = None,
) -> dict[str, Any]:
    """All metrics of one network with 95 % intervals over patients, as plain values for a JSON file.

    ``grades`` (NaN, NA or None where ungraded) and ``patients`` are those of ``predictions.rows``, both (N,). Grading metrics
    count graded cases, attention metrics all cases. Undefined values are None. The report does not contain patient names.
    With the ``temperature`` that the predictions were calibrated by, also their ECE before (``ece_uncalibrated``).
    """
    graded, known_grades = _known(grades, len(predictions))
    statistics = _statistics(predictions, graded, known_grades, grade_set, temperature=temperature)
    values = statistics(np.ones((1, len(predictions))))
    counted = _counted(values, graded, known_grades, ~np.isnan(predictions.iou))
    spread = intervals(statistics, patients, samples=samples, seed=seed, counted=counted, biased=BIASED)
    spread |= {name: (max(spread[name][0], 0.0), spread[name][1]) for name in BIASED if name in spread}
    counts = metrics.confusion(known_grades, predictions.predicted[graded], grade_set.count)
    return {
        "cases": len(predictions),
        "graded": int(graded.sum()),
        "patients": len(np.unique(np.asarray(patients).astype(str))),
        "graded_patients": len(np.unique(np.asarray(patients)[graded].astype(str))),
        "with_mask": int((~np.isnan(predictions.iou)).sum()),
        "grades": list(grade_set.names),
        "temperature": temperature,
        "interval": {"level": 0.95, "method": "percentile bootstrap over patients", "samples": samples, "seed": seed},
        "metrics": {
            name: {"value": _plain(value[0]), "low": _plain(spread[name][0]), "high": _plain(spread[name][1])}
            for name, value in values.items()
        },
        "confusion": counts.tolist(),
    }


def difference(
    first: Predictions,
    second: Predictions,
    grades: ArrayLike,
    patients: ArrayLike,
    grade_set: GradeSet,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Second minus first, metric by metric, with a paired 95 % interval over patients: {value, low, high}.

    Both must be on the same rows in the same order, else ValueError. If the interval excludes 0, the difference is larger
    than the random choice of patients explains.
    """
    if not np.array_equal(first.rows, second.rows):
        raise ValueError("the two predictions are of different rows: a paired comparison needs the same cases in order")
    graded, known_grades = _known(grades, len(first))
    of_first, of_second = (_statistics(one, graded, known_grades, grade_set) for one in (first, second))

    def statistics(weights: Floats) -> dict[str, Floats]:
        before, after = of_first(weights), of_second(weights)
        return {name: after[name] - before[name] for name in before.keys() & after.keys()}

    values = statistics(np.ones((1, len(first))))
    counted = _counted(values, graded, known_grades, ~np.isnan(first.iou) & ~np.isnan(second.iou))
    spread = intervals(statistics, patients, samples=samples, seed=seed, counted=counted, biased=BIASED)
    return {
        name: {"value": _plain(values[name][0]), "low": _plain(spread[name][0]), "high": _plain(spread[name][1])}
        for name in of_first(np.ones((1, len(first))))
        if name in values
    }


def predictions_table(
    predictions: Predictions,
    *,
    cases: Sequence[str],
    images: Sequence[str] | None = None,
    grades: ArrayLike | None = None,
    others: Mapping[str, Predictions] | None = None,
) -> pd.DataFrame:
    """One row a case: case, image, grade, predicted, p_0 …, entropy, iou, map_maximum, empty, flip columns.

    All sequences are those of ``predictions.rows``. ``cases`` are names that may be shared; with ``images``, which are file
    names, the table must stay local. Each of ``others`` (``{"student": …}``) adds its columns under its name, whether its
    grade is the same (``student_agrees``), and the distance of its probabilities (``student_distance``, Jensen–Shannon, nats).
    """
    columns: dict[str, Any] = {"case": list(cases)}
    if images is not None:
        columns["image"] = list(images)
    if grades is not None:
        columns["grade"] = _nullable(grades)
    columns |= _columns(predictions)
    for name, other in (others or {}).items():
        if not np.array_equal(other.rows, predictions.rows):
            raise ValueError(f"the predictions of {name} are of other rows or in another order")
        columns |= {f"{name}_{column}": values for column, values in _columns(other).items()}
        columns[f"{name}_agrees"] = other.predicted == predictions.predicted
        pair = (torch.from_numpy(one.probabilities).double() for one in (predictions, other))
        columns[f"{name}_distance"] = jensen_shannon(*pair).numpy()
    return pd.DataFrame(columns)


def best_grid_iou(masks: Any, grid: tuple[int, int], *, steps: int = 60) -> Floats:
    """The best IoU that attention on a grid reached on the given masks in an optimization: a reference value for TIoU.

    masks (N, H, W) in {0, 1}, grid (h, w) of the class maps → (N,) in [0, 1], NaN where the mask is empty. Starts from
    the mask averaged over the cells and maximizes the soft IoU of f in ``steps`` steps. Every value was reached by an actual
    class map, so the true maximum is at least this value.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise ValueError(f"masks {masks.shape} must be (N, H, W)")
    chunks = [
        _climb(torch.from_numpy(masks[start : start + 64]).float(), grid, steps) for start in range(0, len(masks), 64)
    ]
    return np.concatenate(chunks) if chunks else np.zeros(0)


def _climb(target: Tensor, grid: tuple[int, int], steps: int) -> Floats:
    size, classes = (target.shape[1], target.shape[2]), torch.zeros(len(target), dtype=torch.int64)
    cells = F.interpolate(target[:, None], size=grid, mode="area").requires_grad_()
    optimizer = torch.optim.Adam([cells], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    best = metrics.per_image_iou(attention_mask(cells, classes, size), target)
    for step in range(steps):
        # A soft threshold at first gives every pixel a gradient; a sharp one later fixes the edge.
        soft = attention_mask(cells, classes, size, sharpness=20 + 80 * step / steps)
        both, either = (soft * target).sum((1, 2)), (soft + target - soft * target).sum((1, 2))
        optimizer.zero_grad()
        torch.autograd.backward((1 - both / either.clamp(min=1e-6)).sum())
        optimizer.step()
        schedule.step()
        best = np.fmax(best, metrics.per_image_iou(attention_mask(cells, classes, size), target))
    return best


def _nullable(grades: ArrayLike) -> pd.Series[Any]:
    """Grades with NA for missing ones, however these are given; ValueError for values that are not whole numbers."""
    try:
        return pd.Series(
            [None if pd.isna(grade) else grade for grade in np.asarray(grades, dtype=object)], dtype="Int64"
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"grades must be whole numbers or empty: {error}") from error


def _known(grades: ArrayLike, count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which cases are graded (N,), and the grades of these cases."""
    values = _nullable(grades)
    if len(values) != count:
        raise ValueError(f"{len(values)} grades for {count} predictions; pass those of predictions.rows, in order")
    graded = values.notna().to_numpy()
    return graded, values[graded].to_numpy(dtype=np.int64)


def _statistics(
    predictions: Predictions,
    graded: NDArray[np.bool_],
    grades: NDArray[np.int64],
    grade_set: GradeSet,
    *,
    temperature: float | None = None,
) -> Callable[[Floats], dict[str, Floats]]:
    """A function of weights (S, N) that gives every statistic of the predictions by name, each (S,)."""
    means = {"tiou": metrics.exceeded_share(predictions.iou), "iou": predictions.iou}
    means["empty_maps"] = predictions.empty.astype(np.float64)
    means["entropy"] = predictions.entropy
    if predictions.flip_divergence is not None and predictions.flip_changed is not None:
        means["flip_changed"] = predictions.flip_changed.astype(np.float64)
        means["flip_divergence"] = predictions.flip_divergence
    if graded.any():
        probabilities, grades = metrics.checked(predictions.probabilities[graded], grades)
        predicted = predictions.predicted[graded]
        if probabilities.shape[1] != grade_set.count:
            raise ValueError(f"{probabilities.shape[1]} grades predicted; {grade_set.name} has {grade_set.count}")
        before = None if temperature is None else tempered(probabilities, 1 / temperature)

    def statistics(weights: Floats) -> dict[str, Floats]:
        of_grades: dict[str, Floats] = {}
        if graded.any():
            first = grade_set.disease_from
            of_grades = metrics.weighted_metrics(
                probabilities, predicted, grades, weights[:, graded], disease_from=first
            )
        if graded.any() and before is not None:
            of_grades["ece_uncalibrated"] = metrics.weighted_calibration_error(before, grades, weights[:, graded])
        return of_grades | {name: metrics.weighted_mean(values, weights) for name, values in means.items()}

    return statistics


def _counted(
    names: Iterable[str], graded: NDArray[np.bool_], grades: NDArray[np.int64], with_mask: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """The cases (N,) that each statistic counts: those with a mask, those of one grade, all that are graded, or all."""
    counted = {}
    for name in names:
        grade = name.removeprefix("recall_")
        if name in ("tiou", "iou"):
            counted[name] = with_mask
        elif grade.isdigit():
            counted[name] = graded.copy()
            counted[name][graded] = grades == int(grade)
        elif name not in _OF_ALL_CASES:
            counted[name] = graded
    return counted


def _columns(predictions: Predictions) -> dict[str, Any]:
    columns: dict[str, Any] = {"predicted": predictions.predicted}
    columns |= {f"p_{grade}": column for grade, column in enumerate(predictions.probabilities.T)}
    for name in ("entropy", "iou", "map_maximum", "empty", "flip_divergence", "flip_changed"):
        if (values := getattr(predictions, name)) is not None:
            columns[name] = values
    return columns


def _plain(value: float) -> float | None:
    """A value for JSON, which has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)
