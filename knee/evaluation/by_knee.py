"""Grade a knee from the slices of its volume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knee.grades import Decision, decide
from knee.images.slices import stacks

if TYPE_CHECKING:
    from knee.evaluation.predictions import Predictions

Floats = NDArray[np.float64]
_SEVEREST = 0.25
"""As in ``knee.nn.slice_pooling``, which needs torch; an exported network grades without."""


def knee_probabilities(slices: NDArray[np.floating], *, severest: bool) -> Floats:
    """Probabilities (K,) of a knee from those of its slices (n, K): their mean, or with ``severest`` as ``pool_slices``."""
    slices = np.asarray(slices, np.float64)
    if not severest:
        return np.asarray(slices.mean(0))
    expected = slices @ np.arange(slices.shape[1])
    most = np.argsort(-expected, kind="stable")[: math.ceil(_SEVEREST * len(slices))]
    raised = np.exp(np.log(np.clip(slices[most], 1e-30, None)).mean(0))
    return np.asarray(raised / raised.sum())


def knee_predictions(
    predictions: Predictions, series: Sequence[str], *, severest: bool, decision: Decision = "likeliest"
) -> Predictions:
    """One prediction for each knee, from those of its slices (``knee_probabilities``), in the order of their first slices.

    ``series`` (N,) names the volume of each image; an image in none ('') is a knee of its own. ``rows`` of the result are
    those of the first slices. A knee has no attention map, so ``iou`` is missing.
    """
    from knee.evaluation.predictions import Predictions  # needs torch, which an exported network does without

    places = stacks(series)
    shares = np.stack([knee_probabilities(predictions.probabilities[place], severest=severest) for place in places])
    first = np.array([place[0] for place in places])
    return Predictions(
        rows=predictions.rows[first],
        probabilities=shares.astype(np.float32),
        predicted=decide(shares, decision),
        entropy=-(shares * np.log(np.clip(shares, 1e-300, None))).sum(1),
        map_maximum=np.array([predictions.map_maximum[place].max() for place in places]),
        empty=np.array([predictions.empty[place].all() for place in places]),
        iou=np.full(len(places), np.nan),
    )


def knee_grades(grades: Sequence[Any] | NDArray[np.int64], series: Sequence[str]) -> NDArray[np.int64]:
    """The highest of the grades (N,) of each knee's slices → (M,), in the order of ``knee_predictions``; −1 if none is graded.

    Slices of a volume that was graded as a whole all have its grade.
    """
    of_slices = np.asarray(grades, np.int64)
    return np.array([of_slices[places].max() for places in stacks(series)], np.int64)


def by_knee(
    table: pd.DataFrame,
    series: Mapping[str, str],
    names: Sequence[str],
    *,
    severest: bool = False,
    decision: Decision = "likeliest",
) -> pd.DataFrame:
    """One row per series: the probabilities from its slices (``knee_probabilities``), and the grade called from them.

    Columns: series, side, slices (all that were to be graded), without_grade (slices that are missing from ``table`` or have
    no grade there), predicted, predicted_name, p_0, …. A series without a graded slice has no grade.

    Args:
        table: one row per graded image: image, side, predicted (NA if it got no grade), p_0, ….
        series: the series of each image that was to be graded; '' if it is in none.
        names: of the grades.
        decision: of the grade set.
    """
    shares = [f"p_{grade}" for grade in range(len(names))]
    slices = pd.Series({image: one for image, one in series.items() if one}, dtype=object).value_counts(sort=False)
    own = table.assign(series=table["image"].map(series).fillna(""))
    sides = own.groupby("series")["side"].first().reindex(slices.index, fill_value="")
    graded = own[own["predicted"].notna()].astype(dict.fromkeys(shares, float)).groupby("series")
    pooled = {name: knee_probabilities(one[shares].to_numpy(), severest=severest) for name, one in graded}
    means = pd.DataFrame.from_dict(pooled, orient="index", columns=shares, dtype=float).reindex(slices.index)
    known = means.notna().all(axis=1).to_numpy()
    grades = decide(means.fillna(1).to_numpy(), decision)
    found = pd.DataFrame({"series": slices.index, "side": sides.to_numpy(), "slices": slices.to_numpy()})
    found["without_grade"] = found["slices"] - graded.size().reindex(slices.index, fill_value=0).to_numpy()
    found["predicted"] = pd.array(grades, dtype="Int64")
    found["predicted_name"] = [names[grade] for grade in grades]
    found.loc[~known, ["predicted", "predicted_name"]] = pd.NA
    return found.join(means.reset_index(drop=True))
