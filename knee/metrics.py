"""Metrics of grading and attention, with conventions for absent grades and undefined values.

Functions that count cases take weights of shape (S, N): one row of ones gives the metric itself, rows of bootstrap counts give
S resampled values at once. Scikit-learn has no such weights, so the formulas are written here; tests compare the two.

Conventions: a grade that no case has is left out of every macro average (its own recall, precision, F1 and AUC are NaN). A
grade that cases have but that is never predicted has precision 0 and F1 0. Undefined values are NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knee.grades import decide

if TYPE_CHECKING:
    from knee.grades import GradeSet

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""The IoU thresholds of TIoU (Huo et al. 2020, section 3.3)."""
OPERATING_POINTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Thresholds on the probability of disease, from which a knee counts as diseased."""


class Reliability(NamedTuple):
    """Cases by confidence, in ``bins`` bins of equal width; a bin includes its upper edge. Each (bins,)."""

    cases: Integers
    confidence: Floats
    """Mean confidence (largest probability) in the bin; NaN where it is empty."""
    accuracy: Floats
    """Share of correctly graded cases in the bin; NaN where it is empty."""


def per_image_iou(attention: Any, mask: Any, *, level: float = 0.5) -> Floats:
    """Intersection over union of {attention > level} and the mask, for each image.

    Both (N, H, W), arrays or tensors, in [0, 1]. Returns (N,) in [0, 1]; NaN where the mask is empty. Empty attention
    gives 0 if the mask is not empty. Raises ValueError for other shapes or values.
    """
    attention, mask = _plain_array(attention), _plain_array(mask)
    if attention.ndim != 3 or attention.shape != mask.shape:
        raise ValueError(
            f"attention {attention.shape} and mask {mask.shape} must both be (N, H, W) of one size; "
            "add a first axis to a single image, resize the mask to the attention's size"
        )
    _require_range(attention, "attention")
    _require_range(mask, "mask")
    attended, true = attention > level, mask > 0.5
    both = np.count_nonzero(attended & true, axis=(1, 2)).astype(np.float64)
    either = np.count_nonzero(attended | true, axis=(1, 2))
    return np.where(true.any(axis=(1, 2)), both / np.maximum(either, 1), np.nan)


def threshold_iou(attention: Any, mask: Any, *, thresholds: Sequence[float] = THRESHOLDS, level: float = 0.5) -> float:
    """TIoU: the share of images whose IoU exceeds T, averaged over the thresholds T (Huo et al. 2020, section 3.3).

    Both (N, H, W) in [0, 1]. Counted per image; images with an empty mask are left out; an IoU equal to T does not
    exceed it. In [0, 1]; NaN when every mask is empty. Raises ValueError as `per_image_iou` does.
    """
    shares = exceeded_share(per_image_iou(attention, mask, level=level), thresholds)
    counted = shares[~np.isnan(shares)]
    return float(counted.mean()) if counted.size else float("nan")


def exceeded_share(iou: Floats, thresholds: Sequence[float] = THRESHOLDS) -> Floats:
    """The share of thresholds that each IoU exceeds: (N,) → (N,), NaN where the IoU is. Its mean is TIoU.

    >>> exceeded_share(np.array([0.0, 0.3, 1.0])).round(3).tolist()
    [0.0, 0.286, 1.0]
    """
    if not len(thresholds) or not all(0 <= threshold < 1 for threshold in thresholds):
        raise ValueError(f"thresholds {tuple(thresholds)} must be numbers in [0, 1), at least one")
    share = (iou[:, None] > np.asarray(thresholds, dtype=np.float64)).mean(axis=1)
    return np.where(np.isnan(iou), np.nan, share)


def quadratic_kappa(grades: Any, predicted: Any) -> float:
    """Cohen's kappa with quadratic weights (difference of the grades)²; grades in between may be absent.

    Both (N,) grades. 1 for equal grades, about 0 for chance agreement, negative below it; NaN if all grades are the same.

    >>> round(quadratic_kappa([0, 2, 4, 4], [0, 2, 4, 0]), 4), quadratic_kappa([1, 1], [1, 1])
    (0.3846, nan)
    """
    grades, predicted = _pair(grades, predicted)
    chance = grades.var() + predicted.var() + (grades.mean() - predicted.mean()) ** 2
    return float(1 - np.mean((grades - predicted) ** 2) / chance) if chance > 0 else float("nan")


def adjacent_accuracy(grades: Any, predicted: Any) -> float:
    """The share of cases whose predicted grade is off by at most one. Both (N,) grades; in [0, 1].

    >>> adjacent_accuracy([0, 1, 2, 4], [0, 2, 4, 3])
    0.75
    """
    grades, predicted = _pair(grades, predicted)
    return float(np.mean(np.abs(grades - predicted) <= 1))


def expected_calibration_error(probabilities: Any, grades: Any, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by cases (Naeini et al. 2015).

    Probabilities (N, K), grades (N,). In [0, 1]; over- and underconfidence count the same.

    >>> expected_calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1])
    0.4
    """
    probabilities, grades = checked(probabilities, grades)
    return float(weighted_calibration_error(probabilities, grades, np.ones((1, len(grades))), bins=bins)[0])


def reliability(probabilities: Any, grades: Any, *, bins: int = 15) -> Reliability:
    """Confidence and accuracy by bin of confidence, for the reliability diagram. Probabilities (N, K), grades (N,)."""
    probabilities, grades = checked(probabilities, grades)
    confidence, place = _confidence_bins(probabilities, bins)
    cases = np.bincount(place, minlength=bins)
    known = np.where(cases > 0, cases, np.nan)
    right = (probabilities.argmax(axis=1) == grades).astype(np.float64)
    return Reliability(
        cases=cases,
        confidence=np.bincount(place, weights=confidence, minlength=bins) / known,
        accuracy=np.bincount(place, weights=right, minlength=bins) / known,
    )


def grading_metrics(probabilities: Any, grades: Any, grade_set: GradeSet) -> dict[str, float]:
    """Every grading metric by name, from probabilities (N, K) and grades (N,).

    ``accuracy``, ``balanced_accuracy`` (macro recall), ``recall``, ``precision``, ``macro_f1`` and ``auc`` (macro over the
    grades that cases have; AUC one versus rest), ``kappa``, ``kappa_balanced`` (mean of kappa and balanced accuracy),
    ``adjacent``, ``mae`` (grades), ``ece``, those of `disease_metrics`, and ``recall_0``, ``precision_0``, ``f1_0``,
    ``auc_0`` … of each grade. NaN where undefined. Raises ValueError if the values are not probabilities of the grade
    set's grades.
    """
    probabilities, grades = checked(probabilities, grades)
    if probabilities.shape[1] != grade_set.count:
        raise ValueError(f"probabilities of {probabilities.shape[1]} grades; {grade_set.name} has {grade_set.count}")
    predicted = decide(probabilities, grade_set.decision)
    values = weighted_metrics(
        probabilities, predicted, grades, np.ones((1, len(grades))), disease_from=grade_set.disease_from
    )
    return {name: float(value[0]) for name, value in values.items()}


def weighted_metrics(
    probabilities: Floats, predicted: Integers, grades: Integers, weights: Floats, *, disease_from: int = 1
) -> dict[str, Floats]:
    """The metrics of `grading_metrics` for S weightings of the cases at once.

    Checked probabilities (N, K), the grades (N,) called from them, and those of the reader (N,); weights (S, N), how often each
    case counts; ``disease_from`` as in `disease_metrics`. Each value is (S,); NaN where undefined, as if
    all weights are 0.
    """
    count = probabilities.shape[1]
    values = confusion_metrics(weighted_confusion(grades, predicted, weights, count=count))
    aucs = np.stack([_auc(probabilities[:, grade], grades == grade, weights) for grade in range(count)], axis=1)
    values |= {"auc": _mean_of_known(aucs), "ece": weighted_calibration_error(probabilities, grades, weights)}
    values |= disease_metrics(probabilities[:, disease_from:].sum(axis=1), grades >= disease_from, weights)
    return values | {f"auc_{grade}": aucs[:, grade] for grade in range(count)}


def disease_metrics(probability: Floats, diseased: NDArray[np.bool_], weights: Floats) -> dict[str, Floats]:
    """Detection of disease: grades from ``disease_from`` of the grade set on, such as KL ≥ 2, against lower ones.

    Probability of disease (N,), whether a case is diseased (N,), weights (S, N) → ``auc_disease`` (ROC), and for each
    threshold t of ``OPERATING_POINTS`` ``sensitivity_t``, ``specificity_t`` and ``net_benefit_t``: the share of true positives
    minus t / (1 − t) times the share of false positives, the ordinate of a decision curve (Vickers and Elkin 2006,
    doi:10.1177/0272989X06295361). Each (S,); a case is positive if its probability is at least t.
    """
    values = {"auc_disease": _auc(probability, diseased, weights)}
    total, positives = weights.sum(axis=1), weights @ diseased.astype(np.float64)
    for threshold in OPERATING_POINTS:
        # A float32 softmax of exact halves may be off by 1e-8.
        called = probability >= threshold - 1e-6
        found, false = (weights @ (called & group).astype(np.float64) for group in (diseased, ~diseased))
        values[f"sensitivity_{threshold:g}"] = _ratio(found, positives)
        values[f"specificity_{threshold:g}"] = 1 - _ratio(false, total - positives)
        values[f"net_benefit_{threshold:g}"] = _ratio(found - false * threshold / (1 - threshold), total)
    return values


def confusion(grades: NDArray[np.int64], predicted: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Counts (K, K), the reader's grades in rows.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    counts = np.zeros((count, count), dtype=np.int64)
    np.add.at(counts, (grades, predicted), 1)
    return counts


def weighted_confusion(grades: Integers, predicted: Integers, weights: Floats, *, count: int) -> Floats:
    """Confusion matrices (S, K, K) of grades (N,) in rows and predicted (N,) in columns under weights (S, N)."""
    cells = np.zeros((len(grades), count * count))
    cells[np.arange(len(grades)), grades * count + predicted] = 1
    return (weights @ cells).reshape(-1, count, count)


def confusion_metrics(confusion: Floats) -> dict[str, Floats]:
    """The metrics computed from confusion matrices (S, K, K), grades in rows: each (S,). NaN where undefined."""
    count = confusion.shape[1]
    total, support, given = confusion.sum(axis=(1, 2)), confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    distance = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    recall = _ratio(hits, support)
    precision = np.where(support > 0, hits / np.maximum(given, 1e-12), np.nan)
    f1 = np.where(support > 0, _ratio(2 * hits, support + given), np.nan)
    by_chance = np.einsum("sk,sl,kl->s", support, given, distance**2)
    balanced = _mean_of_known(recall)
    kappa = 1 - _ratio(np.einsum("skl,kl->s", confusion, distance**2) * total, by_chance)
    values = {
        "accuracy": _ratio(hits.sum(axis=1), total),
        "balanced_accuracy": balanced,
        "recall": balanced,
        "precision": _mean_of_known(precision),
        "macro_f1": _mean_of_known(f1),
        "kappa": kappa,
        "kappa_balanced": (kappa + balanced) / 2,
        "adjacent": _ratio(np.einsum("skl,kl->s", confusion, distance <= 1), total),
        "mae": _ratio(np.einsum("skl,kl->s", confusion, distance), total),
    }
    for grade in range(count):
        values[f"recall_{grade}"] = recall[:, grade]
        values[f"precision_{grade}"] = precision[:, grade]
        values[f"f1_{grade}"] = f1[:, grade]
    return values


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Means (S,) of values (N,) under weights (S, N), without NaN values; NaN if all are NaN."""
    known = ~np.isnan(values)
    return _ratio(weights[:, known] @ values[known], weights[:, known].sum(axis=1))


def checked(probabilities: Any, grades: Any) -> tuple[Floats, Integers]:
    """Probabilities (N, K) as float64 and grades (N,) as int64; ValueError if they are not."""
    probabilities = _plain_array(probabilities).astype(np.float64)
    grades = _grades(grades, "grades")
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities {probabilities.shape} must be (N, K) with K ≥ 2 grades")
    if len(probabilities) != len(grades):
        raise ValueError(f"{len(probabilities)} rows of probabilities but {len(grades)} grades")
    _require_range(probabilities, "probabilities")
    if (worst := np.abs(probabilities.sum(axis=1) - 1).max()) > 1e-3:
        raise ValueError(f"rows of probabilities must sum to 1, one is {worst:.3g} off; apply softmax to logits first")
    if grades.max() >= probabilities.shape[1]:
        raise ValueError(f"grade {grades.max()} has no column in probabilities of {probabilities.shape[1]} grades")
    return probabilities, grades


def weighted_calibration_error(probabilities: Floats, grades: Integers, weights: Floats, *, bins: int = 15) -> Floats:
    """`expected_calibration_error` (S,) of checked probabilities (N, K) and grades (N,) under weights (S, N)."""
    confidence, place = _confidence_bins(probabilities, bins)
    gaps = np.zeros((len(grades), bins))
    gaps[np.arange(len(grades)), place] = (probabilities.argmax(axis=1) == grades) - confidence
    return _ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def _confidence_bins(probabilities: Floats, bins: int) -> tuple[Floats, Integers]:
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    confidence = probabilities.max(axis=1)
    return confidence, np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)


def _auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties counting one half; (S,)."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    positives, negatives = weights * positive, weights * ~positive
    starts = np.flatnonzero(np.r_[True, np.diff(scores) > 0])
    if len(starts) < len(scores):
        positives, negatives = (np.add.reduceat(side, starts, axis=1) for side in (positives, negatives))
    outranked = np.cumsum(negatives, axis=1) - negatives / 2
    return _ratio(np.einsum("sn,sn->s", positives, outranked), positives.sum(axis=1) * negatives.sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)


def _mean_of_known(values: Floats) -> Floats:
    """Means over the last axis without NaN values; NaN if all are NaN."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


def _pair(grades: Any, predicted: Any) -> tuple[Integers, Integers]:
    grades, predicted = _grades(grades, "grades"), _grades(predicted, "predicted")
    if len(grades) != len(predicted):
        raise ValueError(f"{len(grades)} grades but {len(predicted)} predicted ones")
    return grades, predicted


def _grades(values: Any, name: str) -> Integers:
    array = _plain_array(values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} {array.shape} must be (N,) with N ≥ 1")
    if array.dtype.kind not in "iufb" or not np.isfinite(array).all() or (array != np.floor(array)).any():
        raise ValueError(f"{name} must be whole numbers, none missing; leave ungraded cases out first")
    if array.min() < 0:
        raise ValueError(f"{name} holds {array.min()}; grades are 0 or more")
    return array.astype(np.int64)


def _plain_array(values: Any) -> NDArray[Any]:
    """An array from an array or a tensor on any device, of any precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def _require_range(array: NDArray[Any], name: str) -> None:
    # NaN fails the comparison, so it is rejected here too.
    if array.size and not (array.min() >= -1e-6 and array.max() <= 1 + 1e-6):
        raise ValueError(f"{name} must be in [0, 1] without NaN; found {array.min()} to {array.max()}")
