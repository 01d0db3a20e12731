"""Read every image and mask of a manifest before anything is built on them, and list all that cannot be used."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from knee.errors import Faults, UserError
from knee.files import write_text
from knee.grades import GradeSet
from knee.images import read_image, read_mask
from knee.manifest import BadRow, Inspection, Manifest, inspect_manifest, is_file
from knee.pool import map_in_order
from knee.tables import shortened

__all__ = ["BadRow", "check_data", "check_images", "drop_bad"]


def check_data(path: str | Path, grade_set: GradeSet, *, progress: bool = True) -> Inspection:
    """Everything that is wrong with a manifest, its rows, its images and its masks.

    Raises:
        UserError, Faults: what ``inspect_manifest`` raises: the file as a whole is no manifest.
    """
    found = inspect_manifest(path, grade_set)
    bad = [*found.bad, *check_images(found.manifest, absent=False, progress=progress)]
    return replace(found, bad=tuple(sorted(bad, key=lambda row: row.line)))


def check_images(manifest: Manifest, *, absent: bool = True, progress: bool = True) -> list[BadRow]:
    """Read all images and masks, and find what cannot be used, in the manifest's order.

    Bad are: an unreadable or constant image, an unreadable mask, one of another size, and a side that the image's own
    file contradicts. ``absent`` false passes over files that are not there, which ``inspect_manifest`` tells.
    """

    def reasons(row: int) -> list[str]:
        return list(_reasons(manifest, row, absent=absent))

    lines = [int(line) for line in manifest.table["line"].to_list()]
    rows = range(len(manifest.table))
    found = map_in_order(reasons, rows, description="checking images", progress=progress)
    return [
        BadRow(lines[row], str(manifest.table["image"].iat[row]), reason)
        for row, several in zip(rows, found, strict=True)
        for reason in several
    ]


def _reasons(manifest: Manifest, row: int, *, absent: bool) -> Iterator[str]:
    path, mask_path = manifest.image_path(row), manifest.mask_path(row)
    image, mask_name = manifest.table["image"].iat[row], manifest.table["mask"].iat[row]
    size = mask_size = None
    if absent or is_file(path):
        try:
            pixels = read_image(path)
        except UserError as error:
            yield f"image '{image}' {str(error).removeprefix(f'{path}: ')}"
        else:
            size = pixels.values.shape
            side = str(manifest.table["side"].iat[row])
            if side in ("L", "R") and pixels.laterality and side != pixels.laterality:
                yield f"image '{image}' is of side {pixels.laterality} by its file, {side} by the manifest; mend the side"
    if mask_path is not None and (absent or is_file(mask_path)):
        try:
            mask_size = read_mask(mask_path).shape
        except UserError as error:
            yield f"mask '{mask_name}' {str(error).removeprefix(f'{mask_path}: ')}"
    if size and mask_size and size != mask_size:
        yield (
            f"image '{image}' is {size[1]} × {size[0]} pixels, its mask '{mask_name}' {mask_size[1]} × {mask_size[0]}; "
            "draw the mask on the image"
        )


def drop_bad(found: Inspection, reject_path: str | Path | None, *, force: bool = False) -> Manifest:
    """The manifest without its bad rows, which are written to ``reject_path`` (CSV: line, image, reason).

    A row with several faults is there several times. A patient in two splits is not a matter of one row and is refused.

    Raises:
        UserError: ``reject_path`` exists and not ``force``; no row is left. Faults: patients in two splits.
    """
    if found.leaks:
        raise Faults(
            shortened(found.leak_faults()),
            summary=f"{found.manifest.path}: {len(found.leaks)} patients in two splits, which cannot be skipped:",
        )
    sound = found.sound
    if sound.table.empty:
        first = found.bad[0]
        raise UserError(
            f"{found.manifest.path}: all {len(found.bad_lines)} rows are bad; the first: line {first.line}: {first.reason}"
        )
    if reject_path is not None:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(BadRow._fields)
        writer.writerows(found.bad)
        write_text(reject_path, stream.getvalue(), force=force)
    return sound
