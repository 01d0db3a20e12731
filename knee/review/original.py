"""Back to the original pixels: what a reader's own tools show, so what an export must lie on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError
from knee.images.geometry import prepare
from knee.images.read import read_pixels
from knee.review.cases import ReviewCase


@dataclass(frozen=True)
class Original:
    """A case's image as its file has it, and both networks' attention on it."""

    path: Path
    """The source, perhaps with ``#k`` for slice k of a volume."""
    grey: NDArray[np.uint8]
    """(H, W), scaled and inverted as the case's image was: light bone whatever the file's photometric interpretation."""
    student: NDArray[np.float32]
    """x (H, W) in [0, 1]; 0 outside of what the network was shown."""
    teacher: NDArray[np.float32]
    spacing_mm: tuple[float, float] | None


def read_original(case: ReviewCase) -> Original:
    """Read a case's source and put its maps on it. Raises UserError where the source is unknown or cannot be read."""
    if case.source is None or case.geometry is None:
        raise UserError(f"case {case.case}: its image file is not known, so its map cannot be put on its pixels")
    pixels = read_pixels(case.source)
    height, width = pixels.values.shape
    side = max(height, width)
    square, _ = prepare(pixels.values, side, percentiles=case.percentiles, invert=case.inverted)
    top, left = (side - height) // 2, (side - width) // 2
    student, teacher = (
        np.clip(case.geometry.restore(view.attention(case.image.shape[0])), 0, 1).astype(np.float32)
        for view in (case.student, case.teacher)
    )
    if student.shape != (height, width):
        raise UserError(f"{case.source}: has {width} × {height} pixels now, other than when it was read; export again")
    grey = square[top : top + height, left : left + width]
    return Original(case.source, grey, student, teacher, pixels.spacing_mm)
