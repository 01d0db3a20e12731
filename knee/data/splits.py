"""Splits by patient: stratified, with nested labeled subsets. A split that shares a patient is refused."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from knee.data.manifest import SPLITS, Manifest, texts
from knee.data.strata import make_folds, make_split
from knee.errors import Faults, UserError, counted
from knee.grades import GradeSet
from knee.io.files import normal_paths, write_text
from knee.io.tables import read_table

__all__ = [
    "Split",
    "check_split",
    "labeled_rows",
    "make_folds",
    "make_split",
    "read_split",
    "refuse_shared_pictures",
    "unlabeled_rows",
    "write_split",
]

Rows = npt.NDArray[np.int64]
_HINT = "fix them, or make a new split with dcmt split"
REVIEWED = ("graded", "corrected", "confirmed")
"""Values of the manifest's column ``review`` for rows whose grade readers have settled (``knee.review.labels``)."""


@dataclass(frozen=True)
class Split:
    """A split that fits its manifest.

    ``frame`` has the columns image, split ('train', 'val', 'test') and rank (float in [0, 1)); its row i is row i of
    the manifest.
    """

    path: Path
    frame: pd.DataFrame
    absent: Mapping[str, int] = field(default_factory=dict)
    """How many further images of train, val and test the file has: not in the manifest, or on a bad row left out."""

    def rows(self, name: str) -> Rows:
        """Numbers of the manifest's rows in split ``name``, ascending."""
        if name not in SPLITS:
            raise UserError(f"split '{name}' is unknown; write one of {', '.join(SPLITS)}")
        return np.flatnonzero((self.frame["split"] == name).to_numpy())


def write_split(path: str | Path, frame: pd.DataFrame, *, force: bool = False) -> None:
    """Write a split file: image, split, rank with six digits; UserError if it exists and not ``force``."""
    columns = frame[["image", "split", "rank"]]
    write_text(path, columns.to_csv(index=False, float_format="%.6f", lineterminator="\n"), force=force)


def read_split(path: str | Path, manifest: Manifest, *, without: Collection[int] = ()) -> Split:
    """Read a split file and put its rows in the manifest's order.

    Images are matched by their path in the manifest. If no path matches (the manifest is in another folder than the one
    that the split was made from), they are matched by their path below the folder that all images share. Images that are
    only in the split file are ignored.

    Args:
        without: lines of the manifest that are left out: they are not in the ``Split`` and need not be in the file, but
            a patient whose image is on one of them must still be in only one split.

    Raises:
        UserError: not a split file. Faults: all errors in its rows, images of the manifest that are not in it, patients
            in two splits.
    """
    path = Path(path)
    table, faults = read_table(path, ("image", "split", "rank"))
    names = normal_paths(texts(table["image"]))
    ranks = _ranks_of(texts(table["rank"]))
    faults += _row_faults(path, table, names, ranks)
    table["rank"] = ranks
    table["split"] = table["split"].where(table["split"].isin(SPLITS))
    frame, found = _aligned(table, names, manifest)
    left_out = manifest.table["line"].isin(list(without)).to_numpy()
    faults += [
        f"{manifest.path.name} line {line}: image '{image}' is not in the split"
        for line, image in manifest.table.loc[~(found | left_out), ["line", "image"]].itertuples(index=False)
    ]
    faults += _patient_faults(frame, manifest)
    if faults:
        raise Faults(faults, summary=f"{path}: {counted(len(faults), 'error')}; {_HINT}:")
    frame = frame[~left_out].reset_index(drop=True)
    listed, used = (one["split"].value_counts() for one in (table, frame))
    absent = {name: int(listed.get(name, 0) - used.get(name, 0)) for name in SPLITS}
    return Split(path, frame, absent)


def _row_faults(path: Path, table: pd.DataFrame, names: list[str], ranks: npt.NDArray[np.float64]) -> list[str]:
    faults = []
    again = pd.Series(names, index=table.index, dtype=object).duplicated(keep=False)
    in_range = (ranks >= 0) & (ranks < 1)
    suspicious = (again | ~table["split"].isin(SPLITS) | ~in_range).to_numpy()
    seen: dict[str, int] = {}
    rows = np.flatnonzero(suspicious).tolist()
    for row, (line, split, rank) in zip(
        rows, table.loc[suspicious, ["line", "split", "rank"]].itertuples(index=False), strict=True
    ):
        at, name = f"{path.name} line {line}:", names[row]
        if split not in SPLITS:
            faults.append(f"{at} split '{split}' is not train, val or test; write one of these")
        if not in_range[row]:
            faults.append(f"{at} rank '{rank}' is not a number in [0, 1); make a new split")
        if name in seen:
            faults.append(f"{at} image '{name}' is on line {seen[name]} already; remove one of the two")
        seen.setdefault(name, line)
    return faults


def _ranks_of(column: list[str]) -> npt.NDArray[np.float64]:
    try:
        return np.array(list(map(float, column)), np.float64)
    except ValueError:
        return np.array([_rank(text) for text in column], np.float64)


def _rank(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _aligned(table: pd.DataFrame, names: list[str], manifest: Manifest) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """Image, split and rank for each row of the manifest, and (N,) whether the row is in the split file."""
    wanted = normal_paths(texts(manifest.table["image"]))
    if names == wanted:
        places = np.arange(len(names))
    else:
        if set(names).isdisjoint(wanted):
            names, wanted = _below_common_folder(names), _below_common_folder(wanted)
        rows = {name: row for row, name in enumerate(names)}
        places = np.array([rows.get(name, -1) for name in wanted], np.int64)
    frame = table.reindex(places)[["split", "rank"]].reset_index(drop=True)
    frame.insert(0, "image", manifest.table["image"].to_numpy())
    return frame, places >= 0


def _below_common_folder(names: list[str]) -> list[str]:
    folders = {os.path.dirname(name) for name in names}  # noqa: PTH120
    try:
        shared = os.path.commonpath(folders)
    except ValueError:
        return names
    return [os.path.relpath(name, shared) for name in names] if shared else names


def check_split(frame: pd.DataFrame, manifest: Manifest) -> None:
    """Refuse a split that shares a patient between train, validation and test, or gives a patient several ranks.

    Args:
        frame: image, split, rank; its row i is row i of the manifest.

    Raises:
        Faults: the patients, and in which splits they are.
    """
    if len(frame) != len(manifest.table):
        raise UserError(f"the split has {len(frame)} rows, the manifest {len(manifest.table)}; make a new split")
    faults = _patient_faults(frame, manifest)
    if faults:
        raise Faults(faults, summary=f"{len(faults)} patients are split wrongly; {_HINT}:")


def _patient_faults(frame: pd.DataFrame, manifest: Manifest) -> list[str]:
    """Patients in two splits, and patients with two ranks; rows without a split or a rank are ignored."""
    faults = []
    known = manifest.table["patient"].ne("").to_numpy()
    if known.all() and not _differ(frame, manifest.table["patient"]):
        return []
    groups: Any = (
        frame[known].assign(patient=manifest.table["patient"].to_numpy()[known]).groupby("patient", sort=False)
    )
    for patient in groups["split"].nunique().loc[lambda count: count > 1].index:
        rows = groups.get_group(patient).dropna(subset="split").drop_duplicates("split")
        places = " and ".join(f"{split} ('{image}')" for split, image in zip(rows["split"], rows["image"], strict=True))
        faults.append(f"patient '{patient}' is in more than one split: {places}")
    differing = groups["rank"].nunique().loc[lambda count: count > 1].index
    return faults + [f"patient '{patient}' has images with different ranks" for patient in differing]


def _differ(frame: pd.DataFrame, patients: pd.Series) -> bool:
    """Whether any row has another split or rank than the first row of its patient: an exact and fast check of all."""
    codes, _ = pd.factorize(patients)
    _, first = np.unique(codes, return_index=True)
    of_patient = first[codes]
    splits, ranks = pd.factorize(frame["split"])[0], frame["rank"].to_numpy(np.float64)
    return bool((splits != splits[of_patient]).any() or (ranks != ranks[of_patient]).any())


def labeled_rows(
    split: Split, manifest: Manifest, fraction: float, *, grade_set: GradeSet, allow_missing_grades: bool = False
) -> Rows:
    """Labeled rows: graded, in the training split, of a patient with rank < ``fraction``.

    Rows with a reviewed grade are always labeled, whatever their patient's rank, because readers graded them on purpose.

    Raises:
        UserError: fraction outside (0, 1]; no row is left; a grade has no row (unless ``allow_missing_grades``).
            The message gives the smallest sufficient fraction.
    """
    _check_fraction(fraction)
    train = split.rows("train")
    graded = train[manifest.table["grade"].notna().to_numpy()[train]]
    if not len(graded):
        raise UserError(f"{split.path}: no training image has a grade; grade some, or make a new split")
    ranks = _ranks(split, manifest)[graded]
    grades = manifest.table["grade"].to_numpy(dtype="int64", na_value=-1)[graded]
    rows = graded[ranks < fraction]
    if not len(rows):
        enough = _fraction_above(float(ranks.min()))
        raise UserError(
            f"labeled fraction {fraction} leaves no graded training image; the smallest that leaves one is {enough}"
        )
    first = {grade: float(ranks[grades == grade].min(initial=math.inf)) for grade in range(grade_set.count)}
    lacking = [grade for grade, rank in first.items() if rank >= fraction]
    if lacking and not allow_missing_grades:
        names = ", ".join(f"{grade} ({grade_set.names[grade]})" for grade in lacking)
        if math.isinf(max(first.values())):
            hint = (
                "no fraction has them all: grade more images, or train without them by --data.allow_missing_grades true"
            )
        else:
            hint = f"the smallest fraction with all grades is {_fraction_above(max(first.values()))}"
        raise UserError(f"labeled fraction {fraction} ({len(rows)} images) has no image of grade {names}; {hint}")
    return rows


def unlabeled_rows(split: Split, manifest: Manifest, fraction: float) -> Rows:
    """All other training rows: ungraded, or not reviewed and of a patient with rank ≥ ``fraction``."""
    _check_fraction(fraction)
    train = split.rows("train")
    graded = manifest.table["grade"].notna().to_numpy()[train]
    return train[~(graded & (_ranks(split, manifest)[train] < fraction))]


def _ranks(split: Split, manifest: Manifest) -> npt.NDArray[np.float64]:
    """(N,) the patients' ranks, with which the labeled fraction is compared; −1 if the grade was reviewed."""
    ranks = split.frame["rank"].to_numpy(np.float64)
    if "review" not in manifest.table:
        return ranks
    return np.where(manifest.table["review"].isin(REVIEWED).to_numpy(), -1.0, ranks)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise UserError(f"labeled fraction {fraction} is not above 0 and at most 1; write e.g. 0.1")


def _fraction_above(rank: float) -> float:
    """The smallest fraction with four digits above ``rank``, which has six.

    >>> _fraction_above(0.01234), _fraction_above(0.5), _fraction_above(0.0012)
    (0.0124, 0.5001, 0.0013)
    """
    return (round(rank * 1_000_000) // 100 + 1) / 10_000


def refuse_shared_pictures(digests: npt.NDArray[np.bytes_], split: Split, table: pd.DataFrame, *, where: str) -> None:
    """Raises Faults where two prepared images of different splits have the same pixels.

    ``digests`` (N,) by row of ``table`` (columns image, line), empty for constant images: they show nothing.
    """
    places = np.full(len(table), -1)
    for number, name in enumerate(SPLITS):
        places[split.rows(name)] = number
    used = (digests != b"") & (places >= 0)
    _, codes = np.unique(digests, return_inverse=True)
    low, high = np.full(len(table), len(SPLITS)), np.full(len(table), -1)
    np.minimum.at(low, codes[used], places[used])
    np.maximum.at(high, codes[used], places[used])
    shared = used & (low < high)[codes]
    rows = table.loc[shared, ["image", "line"]].assign(digest=digests[shared], split=np.array(SPLITS)[places[shared]])
    found = [
        "; ".join(f"line {row.line} ({row.split}): {row.image}" for row in same.itertuples())
        for _, same in rows.groupby("digest", sort=False)
    ]
    if found:
        raise Faults(
            found,
            summary=f"{where}: {len(found)} pictures are in two splits, so the network would be tested on images that it was "
            "trained on; give them one patient in the manifest and split again, or remove the copies:",
        )
