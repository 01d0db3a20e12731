"""Write one image per knee, and contact sheets; the manifest's rows and the images that were not used are returned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knee.errors import UserError, counted
from knee.images.dicom import shows_left_first
from knee.images.joints import KneeBox, find_knees
from knee.images.read import read_image, write_png
from knee.intake.crop.boxes import Box, Side, knee_boxes, knee_sides, without_border
from knee.intake.crop.contact import ContactSheets, contact_tile
from knee.intake.scan import stem
from knee.io.own_folders import mark_as_own
from knee.io.pool import map_in_order

COLUMNS = ("image", "patient", "side", "grade", "mask", "spacing_mm", "source", "box", "side_from", "confidence")
CONTACT = "contact"


class Cropped(NamedTuple):
    """What was cut out of one image."""

    rows: list[dict[str, Any]]
    """Rows of the new manifest."""
    reason: str
    """Why nothing was cut out; '' if something was."""
    tile: NDArray[np.uint8] | None
    """The image with its boxes; None if it cannot be read."""


@dataclass(frozen=True)
class CroppedFolder:
    """What was cut out of the images of a folder."""

    table: pd.DataFrame
    """A manifest's table, with paths relative to the new folder."""
    rejected: list[tuple[str, str]]
    """Images without a crop, and why."""
    pages: list[Path]
    """The contact sheets."""
    notes: list[str]


def crop_images(folder: Path, out: Path, table: pd.DataFrame, *, size_mm: float) -> CroppedFolder:
    """Cut the knees out of the images of a manifest's ``table``, whose paths are relative to ``folder``.

    Crops are PNG files in ``out``: PATIENT_SIDE.png if each patient has one image, else PATIENT/NAME_SIDE.png. An image of two
    knees has two rows without a grade, because its own grade may be that of either knee.

    Raises:
        UserError: a file cannot be written.
    """
    names = crop_names(table)
    rows = table.to_dict("records")

    def crop(number: int) -> Cropped:
        return _crop_image(
            folder, out, {str(key): value for key, value in rows[number].items()}, names[number], size_mm
        )

    mark_as_own(out / CONTACT)
    sheets = ContactSheets(out / CONTACT)
    found: list[dict[str, Any]] = []
    rejected = []
    grades_dropped = 0
    for row, one in zip(rows, map_in_order(crop, range(len(rows)), description="cropping"), strict=True):
        found += one.rows
        if one.reason:
            rejected.append((str(row["image"]), one.reason))
        if one.tile is not None:
            sheets.add(one.tile)
        grades_dropped += len(one.rows) == 2 and not pd.isna(row["grade"])
    sheets.close()
    kept = [name for name in ("split", "visit") if name in table]
    result = pd.DataFrame(found, columns=[*COLUMNS, *kept])
    result["grade"] = result["grade"].astype("Int64")
    return CroppedFolder(result, rejected, sheets.pages, _notes(result, grades_dropped))


def crop_names(table: pd.DataFrame) -> list[str]:
    """The name of each image's crops, without side and suffix; all differ.

    >>> crop_names(pd.DataFrame({"image": ["a/1.dcm", "b/1.dcm"], "patient": ["P 7", "P/7"]}))
    ['P-7', 'P-7-2']
    """
    patients: dict[str, str] = {}
    for patient in table["patient"].astype(str):
        if patient not in patients:
            patients[patient] = _unused(_clean(patient), patients.values())
    if table["patient"].is_unique:
        return [patients[str(patient)] for patient in table["patient"]]
    names: list[str] = []
    for image, patient in zip(table["image"], table["patient"], strict=True):
        names.append(_unused(f"{patients[str(patient)]}/{_clean(stem(str(image)))}", names))
    return names


def as_stored(values: NDArray[np.float32]) -> NDArray[np.uint8 | np.uint16]:
    """Grey values as integers: unchanged if they are whole numbers from 0 to 65,535, else scaled to that range."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and np.array_equal(values, np.rint(values)):
        return values.astype(np.uint8) if high <= 255 else values.astype(np.uint16)
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.rint(scaled * 65535).astype(np.uint16)


def _crop_image(folder: Path, out: Path, row: Mapping[str, Any], name: str, size_mm: float) -> Cropped:
    source = folder / str(row["image"])
    try:
        pixels = read_image(source)
    except UserError as error:
        return Cropped([], str(error).removeprefix(f"{source}: "), None)
    values, spacing = pixels.values, pixels.spacing_mm
    # With a wrong spacing, knees of a plausible size in mm are not found.
    knees = find_knees(values, spacing) or find_knees(values)
    known = pixels.laterality or str(row["side"])
    sides = knee_sides(knees, known, mirrored=shows_left_first(source))
    boxes = knee_boxes(knees, (values.shape[0], values.shape[1]), spacing, size_mm)
    boxes = [without_border(values, box) for box in boxes]
    stored = as_stored(values)
    rows = []
    for number, (knee, side, box) in enumerate(zip(knees, sides, boxes, strict=True)):
        end = f"_{side.side or number + 1}" if side.side or len(knees) == 2 else ""
        path = out / f"{name}{end}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = np.ascontiguousarray(stored[box.top : box.top + box.height, box.left : box.left + box.width])
        write_png(path, part)
        rows.append(_row(row, path.relative_to(out).as_posix(), knee, side, box, spacing, single=len(knees) == 1))
    labels = [(box, f"{side.side or '?'} {side.confidence:.2f}") for box, side in zip(boxes, sides, strict=True)]
    tile = contact_tile(str(row["image"]), values, labels)
    return Cropped(rows, "" if rows else "no knee joint was found", tile)


def _row(
    source: Mapping[str, Any],
    image: str,
    knee: KneeBox,
    side: Side,
    box: Box,
    spacing: tuple[float, float] | None,
    *,
    single: bool,
) -> dict[str, Any]:
    """A row of the new manifest. The spacing is written if it is the same down and across to within 1 %."""
    square = spacing is not None and abs(spacing[0] / spacing[1] - 1) < 0.01
    kept = {key: source[key] for key in ("patient", "split", "visit") if key in source}
    return kept | {
        "image": image,
        "side": side.side,
        "grade": source["grade"] if single else pd.NA,
        "mask": "",
        "spacing_mm": f"{spacing[0]:.6g}" if square and spacing else "",
        "source": source["image"],
        "box": f"{box.left} {box.top} {box.width} {box.height}",
        "side_from": side.origin,
        "confidence": round(knee.confidence * side.confidence, 3),
    }


def _notes(table: pd.DataFrame, grades_dropped: int) -> list[str]:
    notes = []
    unknown = int(table["side"].eq("").sum())
    by_anatomy = int(table["side_from"].eq("anatomy").sum())
    if by_anatomy:
        notes.append(
            f"{counted(by_anatomy, 'side')} by the anatomy alone, as on films seen as if facing the patient: check the contact "
            "sheets if your films may be mirrored."
        )
    if unknown:
        notes.append(f"{counted(unknown, 'crop')} without a side: neither the file nor the anatomy is clear.")
    if grades_dropped:
        notes.append(
            f"{counted(grades_dropped, 'image')} of two knees had one grade, which may be that of either knee and is left out."
        )
    return notes


def _clean(name: str) -> str:
    """A name for a file: anything but letters, digits, dot and underscore becomes a hyphen."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "image"


def _unused(name: str, taken: Any) -> str:
    used = Counter(other.lower() for other in taken)
    number, found = 2, name
    while found.lower() in used:
        found, number = f"{name}-{number}", number + 1
    return found
