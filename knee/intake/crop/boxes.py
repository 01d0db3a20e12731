"""Where to cut an image so that each part shows one knee, and which side each knee is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knee.images.joints import BOX_WIDTHS, KneeBox

SIZE_MM = 140.0
"""Side of a crop where the spacing is known; elsewhere the same multiple of the bones' width as for bones of 80 mm."""
LEAST_SURE = 0.9
"""A side that only the anatomy gives is written if it is at least this probable."""
_BONES_MM = (55.0, 110.0)
_UNIFORM = 0.03
_ENDS = (2, 98)

Origin = Literal["file", "anatomy", ""]


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Side(NamedTuple):
    """Which knee it is, and how that is known."""

    side: str
    """'L', 'R', or '' if unknown."""
    origin: Origin
    """'file': by its header, name or sheet; 'anatomy': by the fibula and the shape of the bones."""
    confidence: float
    """1 for 'file'; else the probability of the more probable side."""


def knee_boxes(
    knees: Sequence[KneeBox],
    shape: tuple[int, int],
    spacing_mm: tuple[float, float] | None = None,
    size_mm: float = SIZE_MM,
) -> list[Box]:
    """A square around each knee, cut off at the image's edge and half way to the other knee.

    ``size_mm`` is its side if ``spacing_mm`` (down, across) is known and the bones have a plausible width with it.
    """
    boxes = []
    middle = (knees[0].x + knees[1].x) / 2 if len(knees) == 2 else None
    for knee in knees:
        relative = BOX_WIDTHS * size_mm / SIZE_MM * knee.width / 2
        down, across = relative, relative
        if spacing_mm and _BONES_MM[0] <= knee.width * spacing_mm[1] <= _BONES_MM[1]:
            down, across = (size_mm / mm / 2 for mm in spacing_mm)
        if middle is not None:
            across = min(across, abs(knee.x - middle))
        top, left = (max(0, round(low)) for low in (knee.y + 0.5 - down, knee.x + 0.5 - across))
        bottom, right = (
            min(most, round(high))
            for most, high in zip(shape, (knee.y + 0.5 + down, knee.x + 0.5 + across), strict=True)
        )
        boxes.append(Box(top, left, bottom - top, right - left))
    return boxes


def without_border(values: NDArray[Any], box: Box) -> Box:
    """The box without its edges of one grey value, as of a collimated film or a canvas; the box itself if it is all so.

    values (H, W) of the film. A row or column belongs to the border if its range, without 2 % at each end for noise, is at most
    3 % of that in the box.
    """
    part = values[box.top : box.top + box.height, box.left : box.left + box.width].astype(np.float64)
    least = _UNIFORM * np.ptp(np.percentile(part, _ENDS))
    down = across = slice(None)
    for _ in range(2):  # rows of the border may only be uniform within the columns of the film
        shown = part[down, across]
        spans = (np.ptp(np.percentile(shown, _ENDS, axis=axis), axis=0) for axis in (1, 0))
        rows, columns = (np.flatnonzero(span > least) for span in spans)
        if not len(rows) or not len(columns):
            return box
        top, left = down.start or 0, across.start or 0
        down = slice(top + int(rows[0]), top + int(rows[-1]) + 1)
        across = slice(left + int(columns[0]), left + int(columns[-1]) + 1)
    return Box(box.top + down.start, box.left + across.start, down.stop - down.start, across.stop - across.start)


def knee_sides(knees: Sequence[KneeBox], known: str, *, mirrored: bool = False) -> list[Side]:
    """The side of each knee of one image.

    Args:
        knees: from the left of the image to the right.
        known: the side that the file gives ('' if none). It is ignored if there are two knees.
        mirrored: whether the header says that the patient's left is on the left of the image.
    """
    if len(knees) == 1 and known:
        return [Side(known, "file", 1.0)]
    sides = []
    for knee in knees:
        if knee.side_confidence < LEAST_SURE:
            sides.append(Side("", "", knee.side_confidence))
        else:
            side = {"L": "R", "R": "L"}[knee.side] if mirrored else knee.side
            sides.append(Side(side, "anatomy", knee.side_confidence))
    return sides
