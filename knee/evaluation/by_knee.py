"""Grade a knee from the slices of its volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def by_knee(table: pd.DataFrame, series: Mapping[str, str], names: Sequence[str]) -> pd.DataFrame:
    """One row per series: the plain mean of its slices' probabilities, and the grade with the highest mean.

    Columns: series, side, slices (all that were to be graded), without_grade (slices that are missing from ``table`` or have
    no grade there), predicted, predicted_name, p_0, …. A series without a graded slice has no grade.

    Args:
        table: one row per graded image: image, side, predicted (NA if it got no grade), p_0, ….
        series: the series of each image that was to be graded; '' if it is in none.
        names: of the grades.
    """
    shares = [f"p_{grade}" for grade in range(len(names))]
    slices = pd.Series({image: one for image, one in series.items() if one}, dtype=object).value_counts(sort=False)
    own = table.assign(series=table["image"].map(series).fillna(""))
    sides = own.groupby("series")["side"].first().reindex(slices.index, fill_value="")
    graded = own[own["predicted"].notna()].astype(dict.fromkeys(shares, float)).groupby("series")
    means = graded[shares].mean().reindex(slices.index)
    known = means.notna().all(axis=1).to_numpy()
    grades = np.argmax(means.fillna(0).to_numpy(), axis=1)
    found = pd.DataFrame({"series": slices.index, "side": sides.to_numpy(), "slices": slices.to_numpy()})
    found["without_grade"] = found["slices"] - graded.size().reindex(slices.index, fill_value=0).to_numpy()
    found["predicted"] = pd.array(grades, dtype="Int64")
    found["predicted_name"] = [names[grade] for grade in grades]
    found.loc[~known, ["predicted", "predicted_name"]] = pd.NA
    return found.join(means.reset_index(drop=True))
