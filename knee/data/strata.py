"""Splits and folds drawn by patient, stratified by grade."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from knee.data.manifest import SPLITS, texts
from knee.errors import UserError

_RANK_STEPS = 1_000_000


def make_split(
    table: pd.DataFrame, *, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int, keep: bool = True
) -> pd.DataFrame:
    """Draw train, validation and test by patient, stratified by the patient's highest grade.

    Args:
        table: a manifest's table (image, patient, grade, perhaps split).
        fractions: shares of train, validation and test; they sum to 1.
        keep: if the table has a ``split`` column, its patients keep that split; only the others are drawn.

    Returns:
        image, split and rank, one row for each row of the table. Within each split and stratum of n patients the ranks
        are (position + u) / n with u drawn from [0, 1). So the patients with rank < f are a fraction f of each stratum,
        and the labeled subsets are nested: a larger f contains the subset of a smaller f.

    Raises:
        UserError: fractions that are not shares; a seed below 0; a patient that the table puts in two splits.
    """
    if (
        len(fractions) != 3
        or any(not 0 <= f <= 1 for f in fractions)
        or not math.isclose(sum(fractions), 1, abs_tol=1e-6)
    ):
        raise UserError(
            f"fractions {tuple(fractions)} are not three shares of train, val and test that sum to 1; "
            "e.g. 0.7, 0.1, 0.2"
        )
    rng = _generator(seed)
    highest = _highest_grades(table)
    places = _given_splits(table) if keep else {}
    limits = np.cumsum(fractions)[:2]
    for stratum in _strata([patient for patient in highest if patient not in places], highest, rng):
        positions = (np.arange(len(stratum)) + rng.random()) / len(stratum)
        for patient, number in zip(stratum, np.searchsorted(limits - 1e-9, positions, side="right"), strict=True):
            places[patient] = SPLITS[number]
    return _frame(table, places, highest, rng)


def make_folds(table: pd.DataFrame, *, folds: int, seed: int) -> list[pd.DataFrame]:
    """``folds`` splits of all patients: fold i tests on part i, validates on part i + 1, and trains on the others.

    Every patient is in the test part exactly once. A ``split`` column of the table is ignored. Parts are stratified by the
    patient's highest grade.

    Raises:
        UserError: fewer than 3 folds, fewer patients than folds, or a seed below 0.
    """
    highest = _highest_grades(table)
    if folds < 3 or len(highest) < folds:
        raise UserError(
            f"{folds} folds of {len(highest)} patients: give 3 folds or more (test, validation, training), "
            "with at least one patient in each"
        )
    rng = _generator(seed)
    # Patients are dealt to the parts continuously across strata, so part sizes differ by at most one patient.
    dealt = [patient for stratum in _strata(list(highest), highest, rng) for patient in stratum]
    parts = {patient: number % folds for number, patient in enumerate(dealt)}
    roles = ["test", "val", *["train"] * (folds - 2)]
    return [
        _frame(table, {patient: roles[(part - fold) % folds] for patient, part in parts.items()}, highest, rng)
        for fold in range(folds)
    ]


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise UserError(f"seed is {seed}; give a whole number from 0")
    return np.random.default_rng(seed)


def _highest_grades(table: pd.DataFrame) -> dict[str, int]:
    """Each patient's highest grade; −1 if none of the patient's images is graded. Sorted by patient."""
    highest = table["grade"].fillna(-1).astype("int64").groupby(table["patient"], sort=True).max()
    return {str(patient): int(grade) for patient, grade in highest.items()}


def _given_splits(table: pd.DataFrame) -> dict[str, str]:
    if "split" not in table:
        return {}
    given = table[table["split"].fillna("") != ""]
    shared = given.groupby("patient")["split"].nunique()
    if (shared > 1).any():
        names = ", ".join(str(patient) for patient in shared.index[shared > 1])
        raise UserError(
            f"the manifest's split column has patients in two splits: {names}; put all images of a patient in one"
        )
    return {str(p): str(s) for p, s in zip(given["patient"], given["split"], strict=True)}


def _strata(patients: Sequence[str], highest: dict[str, int], rng: np.random.Generator) -> list[list[str]]:
    """The patients in one shuffled list per grade."""
    strata: dict[int, list[str]] = {}
    for patient in patients:
        strata.setdefault(highest[patient], []).append(patient)
    return [[strata[grade][i] for i in rng.permutation(len(strata[grade]))] for grade in sorted(strata)]


def _frame(
    table: pd.DataFrame, places: dict[str, str], highest: dict[str, int], rng: np.random.Generator
) -> pd.DataFrame:
    ranks: dict[str, float] = {}
    for name in SPLITS:
        for stratum in _strata([patient for patient in highest if places[patient] == name], highest, rng):
            drawn = (np.arange(len(stratum)) + rng.random(len(stratum))) / len(stratum)
            # Rounded down, so that a file with six digits keeps rank < 1.
            ranks.update(zip(stratum, np.floor(drawn * _RANK_STEPS) / _RANK_STEPS, strict=True))
    patients = texts(table["patient"])
    return pd.DataFrame(
        {
            "image": table["image"].to_numpy(),
            "split": [places[str(patient)] for patient in patients],
            "rank": [float(ranks[str(patient)]) for patient in patients],
        }
    )
