"""The original image for display, in its own orientation and side, with maps in its coordinates.

Every displayed image is made here: overlays, TensorBoard, the review page, PNG, NIfTI and DICOM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError
from knee.images.geometry import Geometry
from knee.images.read import Pixels, read_pixels

MOST_PX = 1024
"""Maximum length of the longer side; larger images are shrunk for display."""
_FEW_PX = 512
_MARGIN = 0.25
_MOST_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Source:
    """An image's file, and how the networks' input square was made from it."""

    path: Path
    """With ``#k`` for slice k of a volume."""
    geometry: Geometry
    inverted: bool = False
    """Whether the square was inverted from a negative, in addition to the inversion that the file declares."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of the grey values that are black and white in the square."""


@dataclass(frozen=True)
class Original:
    """An image for display, and how to map results from the square onto it."""

    path: Path | None
    pixels: NDArray[np.uint8]
    """(h, w): 8-bit images unchanged; for others, grey values from somewhat below black to somewhat above white."""
    window: tuple[float, float]
    """The values of ``pixels`` that are initially displayed as black and white, as in the networks' input."""
    geometry: Geometry
    """From the prepared square to ``pixels``, reversing crop, padding and flip."""
    size: tuple[int, int]
    """(H, W) of the file."""
    spacing_mm: tuple[float, float] | None = None
    problem: str = ""
    """Why the file could not be read; ``pixels`` are then the prepared square."""

    @property
    def grey(self) -> NDArray[np.uint8]:
        """``pixels`` with ``window`` applied."""
        black, white = self.window
        levels = (np.arange(256) - black) / max(white - black, 1e-6)
        shades: NDArray[np.uint8] = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
        return np.asarray(shades[self.pixels])

    def place(self, square: NDArray[Any]) -> NDArray[np.float32]:
        """A map (S, S) in [0, 1] on the prepared square → (h, w) on ``pixels``; 0 outside the square."""
        return np.clip(self.geometry.restore(square), 0, 1).astype(np.float32)

    def shrunk(self, most: int = MOST_PX) -> Original:
        """The same with at most ``most`` pixels on the longer side."""
        height, width = self.pixels.shape
        scale = most / max(height, width)
        if scale >= 1:
            return self
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pixels: NDArray[np.uint8] = cv2.resize(self.pixels, size[::-1], interpolation=cv2.INTER_AREA)
        place = {name: round(getattr(self.geometry, name) * scale) for name in ("top", "left", "side")}
        return replace(self, pixels=pixels, geometry=replace(self.geometry, height=size[0], width=size[1], **place))

    @property
    def note(self) -> str:
        """A note for readers if the image is small or not the original; else empty."""
        height, width = self.size
        if self.problem:
            return f"original not readable; shown is the network’s input of {width} × {height} px"
        return f"small original: {width} × {height} px" if max(self.size) < _FEW_PX else ""


def read_original(source: Source | None) -> Original:
    """Read an image for display. Raises UserError if it is unknown, cannot be read, or has changed its size."""
    if source is None:
        raise UserError("the image file is not known, so its maps cannot be put on its pixels")
    return original_of(read_pixels(source.path), source)


def original_of(found: Pixels, source: Source) -> Original:
    """The image for display of pixels that were read from ``source``. Raises UserError if it has changed its size."""
    values = found.values
    height, width = values.shape
    if (height, width) != (source.geometry.height, source.geometry.width):
        raise UserError(f"{source.path}: has another size than before ({width} × {height} pixels now); export again")
    low, high = _black_and_white(values, source.percentiles)
    first, last = float(values.min()), float(values.max())
    if first >= 0 and last <= 255 and np.array_equal(values, np.rint(values)):
        start, stop = 0.0, 255.0
    else:
        # Leaves room for the reader to change the window, with about 170 grey levels within the initial one.
        margin = _MARGIN * (high - low)
        start, stop = max(first, low - margin), min(last, high + margin)
    scale = 255 / max(stop - start, 1e-6)
    pixels = np.rint(np.clip((values - start) * scale, 0, 255)).astype(np.uint8)
    window = (low - start) * scale, (high - start) * scale
    if source.inverted:
        pixels, window = 255 - pixels, (255 - window[1], 255 - window[0])
    return Original(source.path, pixels, window, source.geometry, (height, width), found.spacing_mm)


def prepared_original(square: NDArray[np.uint8], source: Source | None, problem: str) -> Original:
    """The prepared square (S, S), not flipped, in place of an original that cannot be shown."""
    size = square.shape[0]
    mirror = source is not None and source.geometry.mirror
    pixels = np.ascontiguousarray(square[:, ::-1]) if mirror else square
    geometry = Geometry(size, size, 0, 0, size, size, mirror)
    return Original(source.path if source else None, pixels, (0, 255), geometry, (size, size), problem=problem)


def shown_original(source: Source | None, square: NDArray[np.uint8], *, most: int | None = MOST_PX) -> Original:
    """The original, at most ``most`` pixels wide and high; if it cannot be read, the prepared square and the reason."""
    try:
        original = read_original(source)
    except UserError as error:
        return prepared_original(square, source, str(error))
    return original if most is None else original.shrunk(most)


def _black_and_white(values: NDArray[np.float32], percentiles: tuple[float, float]) -> tuple[float, float]:
    """The grey values that ``knee.images.geometry.prepare`` maps to black and white."""
    step = max(1, int(np.ceil(np.sqrt(values.size / _MOST_SAMPLES))))
    low, high = (float(level) for level in np.percentile(values[::step, ::step], percentiles))
    return (low, high) if high > low else (float(values.min()), float(values.max()))
