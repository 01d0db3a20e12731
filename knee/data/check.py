"""Check a manifest: read every image and mask, and list all that cannot be used."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd

from knee.data.manifest import BadRow, Inspection, Manifest, inspect_manifest
from knee.errors import Faults, UserError, counted
from knee.grades import GradeSet
from knee.images.dicom import Subject, read_subject
from knee.images.joints import find_knees
from knee.images.read import read_image, read_mask
from knee.images.slices import is_file
from knee.io.files import write_text
from knee.io.pool import map_in_order
from knee.io.tables import spreadsheet_text

__all__ = ["BadRow", "check_data", "check_images", "drop_bad"]


_MUCH = 0.5
"""A mask that covers a larger share of its image is probably not a cartilage mask."""
_MOST_LINES = 5
_FACTS = ("patient", "side", "grade")


@dataclass(slots=True)
class _Seen:
    """What the files of one row contain."""

    reasons: list[str] = field(default_factory=list)
    pixels: bytes | None = None
    """A digest of size and grey values."""
    two_knees: bool = False
    covered: float | None = None
    """The share of the image that its mask covers."""
    side: str = ""
    """According to the image's own file."""
    subject: Subject | None = None
    remarks: tuple[str, ...] = ()
    """Properties of the file that are ignored (``Pixels.remarks``)."""


def check_data(path: str | Path, grade_set: GradeSet, *, progress: bool = True) -> Inspection:
    """Find all errors in a manifest, its rows, its images and its masks.

    Raises:
        UserError, Faults: as ``inspect_manifest``: the file as a whole is not a manifest.
    """
    found = inspect_manifest(path, grade_set)
    seen = _look(found.manifest, absent=False, progress=progress)
    bad = [*found.bad, *_bad_rows(found.manifest, seen)]
    leaks, remarks = _one_person(found.manifest.table, seen)
    return replace(
        found,
        bad=tuple(sorted(bad, key=lambda row: row.line)),
        leaks=(*found.leaks, *leaks),
        remarks=(*remarks, *_remarks(found.manifest.table, seen)),
    )


def check_images(manifest: Manifest, *, absent: bool = True, progress: bool = True) -> list[BadRow]:
    """Read all images and masks and return the rows that cannot be used, in the manifest's order.

    A row is bad if its image is unreadable or constant, if its mask is unreadable or has another size, if its side
    contradicts the image's own file, or if another row with another patient, side or grade has the same pixels. With
    ``absent`` false, missing files are skipped, because ``inspect_manifest`` reports them.
    """
    return _bad_rows(manifest, _look(manifest, absent=absent, progress=progress))


def _look(manifest: Manifest, *, absent: bool, progress: bool) -> list[_Seen]:
    def look(row: int) -> _Seen:
        seen = _Seen()
        seen.reasons += _reasons(manifest, row, seen, absent=absent)
        return seen

    rows = range(len(manifest.table))
    return list(map_in_order(look, rows, description="checking images", progress=progress))


def _bad_rows(manifest: Manifest, seen: Sequence[_Seen]) -> list[BadRow]:
    copies = _copies(manifest.table, seen)
    rows = zip(manifest.table["line"], manifest.table["image"], seen, strict=True)
    return [
        BadRow(line, image, reason)
        for number, (line, image, one) in enumerate(rows)
        for reason in [*one.reasons, *copies.get(number, ())]
    ]


def _reasons(manifest: Manifest, row: int, seen: _Seen, *, absent: bool) -> Iterator[str]:
    """The reasons why a row cannot be used; other findings about its image are stored in ``seen``."""
    path, mask_path = manifest.image_path(row), manifest.mask_path(row)
    image, mask_name = manifest.table["image"].iat[row], manifest.table["mask"].iat[row]
    pixels = None
    if absent or is_file(path):
        try:
            pixels = read_image(path)
        except UserError as error:
            yield f"image '{image}' {str(error).removeprefix(f'{path}: ')}"
        else:
            size = pixels.values.shape
            seen.remarks = pixels.remarks
            seen.pixels = blake2b(str(size).encode() + pixels.values.tobytes(), digest_size=16).digest()
            seen.two_knees = len(find_knees(pixels.values, pixels.spacing_mm)) == 2
            seen.side = pixels.laterality or ""
            seen.subject = read_subject(path)
            side = str(manifest.table["side"].iat[row])
            if side in ("L", "R") and seen.side not in ("", side):
                yield f"image '{image}' is of side {seen.side} in its file, {side} in the manifest; fix the side"
    if mask_path is not None and (absent or is_file(mask_path)):
        try:
            seen.covered = float(read_mask(mask_path, of=pixels).mean())
        except UserError as error:
            yield f"mask '{mask_name}' {str(error).removeprefix(f'{mask_path}: ')}"


def _copies(table: pd.DataFrame, seen: Sequence[_Seen]) -> dict[int, list[str]]:
    """Reasons by row: images with the same pixels as another file that has another patient, side or grade."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    for number, one in enumerate(seen):
        if one.pixels:
            alike[one.pixels].append(number)
    found = {}
    for numbers in (numbers for numbers in alike.values() if len(numbers) > 1):
        rows = dict(zip(numbers, table.iloc[numbers].to_dict("records"), strict=True))
        # One row for each combination of patient, side and grade that these pixels have.
        firsts: dict[tuple[str, ...], dict[Hashable, Any]] = {}
        for number in numbers:
            firsts.setdefault(tuple(str(rows[number][fact]) for fact in _FACTS), rows[number])
        for number in numbers:
            reason = next(
                (reason for other in firsts.values() if (reason := _contradiction(rows[number], other))), None
            )
            if reason:
                found[number] = [reason]
    return found


def _contradiction(row: dict[Hashable, Any], other: dict[Hashable, Any]) -> str | None:
    """How two rows with the same pixels contradict each other; ``inspect_manifest`` reports two rows of one file."""
    if os.path.normpath(row["image"]) == os.path.normpath(other["image"]):
        return None
    known = [fact for fact in _FACTS if not any(pd.isna(one[fact]) or one[fact] == "" for one in (row, other))]
    differing = [fact for fact in known if row[fact] != other[fact]]
    if not differing:
        return None
    return (
        f"image '{row['image']}' has the same pixels as '{other['image']}' (line {other['line']}), but another "
        f"{' and '.join(differing)}; keep the correct row"
    )


def _one_person(table: pd.DataFrame, seen: Sequence[_Seen]) -> tuple[list[BadRow], list[str]]:
    """Leaks: DICOM files with one PatientID under several patients; or a remark, if all files have the same PatientID."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(seen):
        if one.subject and one.subject.patient and table["patient"].iat[row]:
            rows_of[one.subject.patient].append(row)
    leaks = []
    for rows in rows_of.values():
        firsts = table.iloc[rows].drop_duplicates("patient")[["line", "image", "patient"]].to_dict("records")
        if len(rows_of) == 1 and len(firsts) > 2:
            return [], [
                f"all {len(rows)} DICOM files with a PatientID have the same one, but the manifest has {len(firsts)} patients: "
                "either the PatientID was blanked in the files, or one person is in the manifest under several names"
            ]
        leaks += [
            BadRow(
                row["line"],
                row["image"],
                f"image '{row['image']}' is of patient '{row['patient']}', '{firsts[0]['image']}' (line {firsts[0]['line']}) "
                f"of '{firsts[0]['patient']}', but both files have the same PatientID; write one patient",
            )
            for row in firsts[1:]
        ]
    return leaks, []


def _remarks(table: pd.DataFrame, seen: Sequence[_Seen]) -> list[str]:
    """Findings that are not errors but deserve attention."""
    sideless = [row for row, one in enumerate(seen) if one.side and not table["side"].iat[row]]
    both = [row for row, one in enumerate(seen) if one.two_knees]
    remarks = []
    if sideless:
        remarks.append(
            f"{counted(len(sideless), 'image')} ({_lines(table, sideless)}) "
            "without a side in the manifest, although the file has it: "
            "write it, or training (data.mirror_side) does not mirror images that predict mirrors"
        )
    if both:
        remarks.append(
            f"{counted(len(both), 'image')} ({_lines(table, both)}) of two knees, but an image is graded as one; make one "
            "image per knee with dcmt crop"
        )
    if pairs := _named_with_sides(table):
        remarks.append(
            f"{counted(len(pairs), 'pair')} of patients that differ only in a side at the end ({pairs[0]} first): if these are "
            "the two knees of one person, write one patient, or they may end up in both training and test"
        )
    empty = [row for row, one in enumerate(seen) if one.covered == 0]
    much = [row for row, one in enumerate(seen) if one.covered is not None and one.covered > _MUCH]
    if empty:
        remarks.append(
            f"{counted(len(empty), 'mask')} ({_lines(table, empty)}) with nothing marked: correct if there is no cartilage; "
            "if nobody has drawn the mask yet, leave the column mask empty"
        )
    if much:
        remarks.append(
            f"{counted(len(much), 'mask')} ({_lines(table, much)}) over more than half of the image: if the background is "
            "marked, save them with 0 there; a segmenter learns what is marked"
        )
    ignored: dict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(seen):
        for remark in one.remarks:
            ignored[remark].append(row)
    remarks += [f"{counted(len(rows), 'image')} ({_lines(table, rows)}) {remark}" for remark, rows in ignored.items()]
    return remarks


def _named_with_sides(table: pd.DataFrame) -> list[str]:
    """Pairs of patients such as '9001L' and '9001R'."""
    patients = set(table["patient"])
    lefts = sorted(patient for patient in patients if re.fullmatch(r".*(?:[0-9]|[-_ ])L", patient))
    return [f"'{left}' and '{left[:-1]}R'" for left in lefts if f"{left[:-1]}R" in patients]


def _lines(table: pd.DataFrame, rows: Sequence[int]) -> str:
    lines = ", ".join(str(table["line"].iat[row]) for row in rows[:_MOST_LINES])
    more = f" and {len(rows) - _MOST_LINES} more" if len(rows) > _MOST_LINES else ""
    return f"{'line' if len(rows) == 1 else 'lines'} {lines}{more}"


def drop_bad(found: Inspection, reject_path: str | Path | None, *, force: bool = False) -> Manifest:
    """The manifest without its bad rows, which are written to ``reject_path`` (CSV: line, image, reason).

    A row with several errors is listed several times. A patient in two splits, or under two names, concerns several rows
    and is refused.

    Raises:
        UserError: ``reject_path`` exists and not ``force``; no row is left. Faults: patients in two splits or with two names.
    """
    if found.leaks:
        raise Faults(
            found.leak_faults(),
            summary=f"{found.manifest.path}: {counted(len(found.leaks), 'error')} of patients in two splits or under two "
            "names, which cannot be skipped:",
        )
    valid = found.valid
    if valid.table.empty:
        first = found.bad[0]
        raise UserError(
            f"{found.manifest.path}: all {len(found.bad_lines)} rows are bad; the first: line {first.line}: {first.reason}"
        )
    if reject_path is not None:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(BadRow._fields)
        writer.writerows([spreadsheet_text(str(value)) for value in row] for row in found.bad)
        write_text(reject_path, stream.getvalue(), force=force)
    return valid
