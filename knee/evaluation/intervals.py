"""Confidence intervals by bootstrap over patients: images of one patient are not independent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_CHUNK = 64  # samples computed at once: limits memory, and the arrays fit into the processor's cache


def patient_weights(patients: ArrayLike, *, samples: int, seed: int) -> Iterator[Floats]:
    """Bootstrap samples of patients as weights of the cases: chunks (≤ 64, N), ``samples`` rows in total.

    ``patients`` (N,) names each case's patient; a drawn patient contributes all of their cases. The chunks depend only on
    patients, ``samples`` and ``seed``, so two methods on the same cases get the same draws (a paired comparison).
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1")
    names, place = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, samples, _CHUNK):
        rows = min(_CHUNK, samples - start)
        draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rows)
        yield draws[:, place].astype(np.float64)


def percentile_interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` interval of resampled values without NaN; (NaN, NaN) if all are NaN.

    >>> percentile_interval(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def shifted_interval(values: Floats, estimate: float, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values, moved by the bootstrap estimate of bias, their mean minus the estimate.

    For means of absolute values, such as the ECE: the chance error of every bin adds to its gap, and resampling adds it once
    more, so that all resampled values can exceed the estimate (bias: Efron and Tibshirani 1993, section 10.2). The interval
    is one for the expected value in data sets of this size, which for the ECE is above 0 even if a network is calibrated.

    >>> [round(end, 3) for end in shifted_interval(np.array([0.3, 0.4, 0.5]), 0.2, level=1)]
    [0.1, 0.3]
    """
    low, high = percentile_interval(values, level=level)
    bias = float(values[~np.isnan(values)].mean()) - estimate if not np.isnan(low) else 0.0
    return low - bias, high - bias


def intervals(
    statistics: Callable[[Floats], dict[str, Floats]],
    patients: ArrayLike,
    *,
    samples: int = 1000,
    seed: int,
    counted: Mapping[str, NDArray[np.bool_]] | None = None,
    biased: Collection[str] = (),
) -> dict[str, tuple[float, float]]:
    """95 % intervals (low, high) of statistics that take weights (S, N) and give values (S,) by name.

    Patients (N,). ``counted`` gives, for a statistic that does not count all cases, a mask (N,) of those it counts. With
    cases of fewer than two patients the spread is unknown: (NaN, NaN). Those named in ``biased`` get a `shifted_interval`.
    """
    chunks = [statistics(weights) for weights in patient_weights(patients, samples=samples, seed=seed)]
    names = np.asarray(patients).astype(str)
    estimates = statistics(np.ones((1, len(names)))) if biased else {}
    found = {}
    for name in chunks[0]:
        cases = (counted or {}).get(name, np.ones(len(names), dtype=bool))
        known = len(np.unique(names[cases])) > 1
        draws = np.concatenate([chunk[name] for chunk in chunks])
        if not known:
            found[name] = (float("nan"), float("nan"))
        elif name in biased:
            found[name] = shifted_interval(draws, float(estimates[name][0]))
        else:
            found[name] = percentile_interval(draws)
    return found


def bootstrap_by_patient(
    metric: Callable[..., float],
    patients: ArrayLike,
    arrays: Sequence[NDArray[Any]],
    *,
    samples: int = 1000,
    seed: int,
) -> tuple[float, float]:
    """The 95 % interval of any metric of arrays whose first axis is the cases, resampled by patient.

    Calls ``metric(*resampled)`` ``samples`` times; `intervals` is faster for metrics that take weights. Patients (N,),
    each array (N, …). Raises ValueError where the lengths differ.
    """
    count = len(np.asarray(patients))
    if any(len(array) != count for array in arrays):
        raise ValueError(f"{count} patients but arrays of {[len(array) for array in arrays]} cases")

    def statistics(weights: Floats) -> dict[str, Floats]:
        draws = (np.repeat(np.arange(count), row.astype(np.int64)) for row in weights)
        return {"metric": np.array([metric(*(array[draw] for array in arrays)) for draw in draws])}

    return intervals(statistics, patients, samples=samples, seed=seed)["metric"]
