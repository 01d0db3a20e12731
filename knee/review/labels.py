"""Turn verdicts into labels: a new version of the manifest, with the reviewed grades next to the original ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from knee.data.manifest import Manifest, write_manifest
from knee.errors import Faults, UserError
from knee.io.tables import shortened, spreadsheet_text
from knee.review.key import KeyedCase
from knee.review.verdicts import latest_verdicts
from knee.review.verdicts_file import Verdict

RULE = (
    "A case gets the median of its readers' final grades. If the number of readers is even and the two middle grades "
    "differ, the case keeps its recorded grade and is listed for a consensus reading. Grades with the verdict 'unsure' or "
    "'bad_image' do not count; a case that at least half of its readers call a bad image keeps its recorded grade."
)
HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class ReviewedLabels:
    """A manifest's table with reviewed grades, and the cases by outcome."""

    table: pd.DataFrame
    graded: tuple[str, ...]
    """Had no grade before."""
    corrected: tuple[str, ...]
    confirmed: tuple[str, ...]
    undecided: tuple[str, ...]
    """The readers disagree or are all unsure: these cases need a consensus reading."""
    bad_image: tuple[str, ...]
    skipped: tuple[str, ...]
    """Cases of the validation and test splits."""

    def __str__(self) -> str:
        groups = ("graded", "corrected", "confirmed", "undecided", "bad_image", "skipped")
        return ", ".join(f"{len(getattr(self, name))} {name.replace('_', ' ')}" for name in groups)


def median_grade(grades: Iterable[int]) -> int | None:
    """The median, or None where the two middle ones differ, or there is none.

    >>> median_grade([1, 2, 4]), median_grade([2, 2, 3, 4]), median_grade([1, 3]), median_grade([])
    (2, None, None, None)
    """
    ordered = sorted(grades)
    if not ordered:
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else None


def reviewed_labels(
    manifest: Manifest, verdicts: Iterable[Verdict], key: Mapping[str, KeyedCase], *, skip_held_out: bool = False
) -> ReviewedLabels:
    """The manifest's table with ``grade`` as reviewed, by ``RULE``.

    A volume (column ``series``) is graded as a whole. Adds ``grade_original`` (kept if it exists already), ``review`` (the
    outcome, empty for cases without a reading) and ``reviewers``. Raises Faults where a case is of the validation or test
    split (unless ``skip_held_out``), not in the key, or its image is not in the manifest. Withdrawn verdicts are ignored.
    """
    readings: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in latest_verdicts(verdicts).values():
        if verdict.says_anything:
            readings[verdict.case].append(verdict)
    rows = {image: row for row, image in enumerate(manifest.table["image"])}
    _check(manifest, rows, readings, key, skip_held_out)
    table = manifest.table.copy()
    if "grade_original" not in table:
        table["grade_original"] = table["grade"]
    for column in ("review", "reviewers"):
        table[column] = table[column].astype(object) if column in table else ""
    missing = table["grade"].isna().to_numpy()
    groups: dict[str, list[str]] = defaultdict(list)
    for case in sorted(readings):
        row = rows[key[case].image]
        if _is_held_out(manifest, row, key[case]):
            groups["skipped"].append(case)
            continue
        recorded = None if missing[row] else int(table["grade"].to_numpy()[row])
        outcome, grade = _resolve(readings[case], recorded)
        groups[outcome].append(case)
        readers = spreadsheet_text(";".join(sorted(verdict.reviewer for verdict in readings[case])))
        for one in _same_knee(table, row):
            table.at[one, "grade"] = pd.NA if grade is None else grade
            table.at[one, "review"] = outcome
            table.at[one, "reviewers"] = readers
    names = ("graded", "corrected", "confirmed", "undecided", "bad_image", "skipped")
    return ReviewedLabels(table, *(tuple(groups[name]) for name in names))


def write_labels(path: Path, manifest: Manifest, labels: ReviewedLabels, *, force: bool = False) -> None:
    """Write the new manifest; paths of images and masks are relative to its folder.

    Raises UserError where ``path`` is the manifest itself, exists (unless ``force``), or cannot be written.
    """
    if Path(path).resolve() == manifest.path.resolve():
        raise UserError(f"{path}: is the reviewed manifest itself; write the new version to another file")
    table = labels.table.copy()
    for column in ("image", "mask"):
        table[column] = [manifest.named_in(Path(path).parent, name) for name in table[column]]
    write_manifest(path, table, force=force)


def _same_knee(table: pd.DataFrame, row: int) -> list[int]:
    """The rows of all slices of the volume of ``row``, which was graded as a whole; ``row`` alone if it is no slice."""
    if "series" not in table or not table["series"].iat[row]:
        return [row]
    return [int(one) for one in np.flatnonzero((table["series"] == table["series"].iat[row]).to_numpy())]


def _resolve(readings: list[Verdict], recorded: int | None) -> tuple[str, int | None]:
    """The outcome of a case, and its new grade."""
    if 2 * sum(verdict.verdict == "bad_image" for verdict in readings) >= len(readings):
        return "bad_image", recorded
    sure = [verdict for verdict in readings if verdict.verdict not in ("unsure", "bad_image")]
    grade = median_grade(verdict.final_grade for verdict in sure if verdict.final_grade is not None)
    if grade is None:
        return "undecided", recorded
    if recorded is None:
        return "graded", grade
    return ("confirmed" if grade == recorded else "corrected"), grade


def _is_held_out(manifest: Manifest, row: int, case: KeyedCase) -> bool:
    """Held out by the split of the run, or by the manifest's split column."""
    table = manifest.table
    return case.split in HELD_OUT or ("split" in table and table["split"].iat[row] in HELD_OUT)


def _check(
    manifest: Manifest,
    rows: Mapping[str, int],
    readings: Mapping[str, list[Verdict]],
    key: Mapping[str, KeyedCase],
    skip_held_out: bool,
) -> None:
    faults = []
    for case in sorted(readings):
        if case not in key:
            faults.append(f"case {case} is not in the run's key; was it imported from another run?")
        elif key[case].image not in rows:
            faults.append(f"case {case}: its image is not in {manifest.path.name}; give the run's own manifest")
        elif not skip_held_out and _is_held_out(manifest, rows[key[case].image], key[case]):
            faults.append(
                f"case {case} is of the {key[case].split} split: readers saw the model's grade, so their grades would "
                "bias its evaluation; leave such cases out with --skip-held-out"
            )
    if faults:
        raise Faults(shortened(faults), summary=f"{len(faults)} reviewed cases cannot become labels")
