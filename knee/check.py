"""Read every image and mask of a manifest before anything is built on them, and list all that cannot be used."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from knee.errors import UserError
from knee.images import read_mask, read_pixels
from knee.manifest import Manifest
from knee.pool import map_in_order
from knee.tables import write_text


class BadRow(NamedTuple):
    """A row of a manifest that cannot be used."""

    line: int
    image: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: image '{self.image}' {self.reason}"


def check_images(manifest: Manifest, *, progress: bool = True) -> list[BadRow]:
    """Read all images and masks, and find the rows that cannot be used, in the manifest's order, each once.

    Bad are: an unreadable or constant image, an unreadable mask, one of another size, and a side that the image's own
    file contradicts.
    """

    def reason(row: int) -> str | None:
        return _reason(manifest, row)

    lines = [int(line) for line in manifest.table["line"].to_list()]
    rows = range(len(manifest.table))
    reasons = map_in_order(reason, rows, description="checking images", progress=progress)
    return [
        BadRow(lines[row], str(manifest.table["image"].iat[row]), found)
        for row, found in zip(rows, reasons, strict=True)
        if found is not None
    ]


def _reason(manifest: Manifest, row: int) -> str | None:
    path, mask_path = manifest.image_path(row), manifest.mask_path(row)
    try:
        pixels = read_pixels(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    if pixels.values.min() == pixels.values.max():
        return f"is empty: all pixels are {pixels.values.flat[0]:g}"
    side = str(manifest.table["side"].iat[row])
    if side and pixels.laterality and side != pixels.laterality:
        return f"is of side {pixels.laterality} by its file, {side} by the manifest; mend the side"
    if mask_path is None:
        return None
    try:
        mask = read_mask(mask_path)
    except UserError as error:
        return f"has a mask that cannot be used: {error}"
    if mask.shape != pixels.values.shape:
        sizes = [f"{array.shape[1]} × {array.shape[0]}" for array in (mask, pixels.values)]
        return (
            f"is {sizes[1]} pixels, its mask '{manifest.table['mask'].iat[row]}' {sizes[0]}; draw the mask on the image"
        )
    return None


def drop_bad(manifest: Manifest, bad: list[BadRow], reject_path: str | Path, *, force: bool = False) -> Manifest:
    """The manifest without its bad rows, which are written to ``reject_path`` (CSV: line, image, reason).

    Raises:
        UserError: ``reject_path`` exists and not ``force``; no row is left.
    """
    if len(bad) == len(manifest.table):
        raise UserError(f"{manifest.path}: all {len(bad)} rows are bad; the first: {bad[0]}")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(BadRow._fields)
    writer.writerows(bad)
    write_text(reject_path, stream.getvalue(), force=force)
    lines = {row.line for row in bad}
    return replace(manifest, table=manifest.table[~manifest.table["line"].isin(lines)].reset_index(drop=True))
