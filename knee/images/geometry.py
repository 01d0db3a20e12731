"""Resize an image of any size to a uint8 square, and map results on the square back to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_MOST_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Geometry:
    """The position of the prepared square on the original image.

    The square window of ``side`` pixels starts at row ``top`` and column ``left`` (negative, or reaching
    beyond the other edge, where the image was padded); it is flipped horizontally if ``mirror``, then resized to
    ``size``.
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    size: int
    mirror: bool

    @property
    def scale(self) -> float:
        """Prepared pixels for each original pixel."""
        return self.size / self.side

    def restore(self, square: npt.NDArray[Any]) -> Values:
        """A map (S, S) on the prepared square as (H, W) float32 on the original pixels.

        It is 0 outside the square. Pixel centers agree to within half an original pixel.
        """
        if square.shape != (self.size, self.size):
            raise ValueError(f"a map of shape {square.shape}; this geometry is of ({self.size}, {self.size})")
        window = _resize(np.asarray(square, np.float32), self.side, up=cv2.INTER_LINEAR)
        if self.mirror:
            window = window[:, ::-1]
        result = np.zeros((self.height, self.width), np.float32)
        there, here = self._overlap()
        result[there] = window[here]
        return result

    def cut(self, values: npt.NDArray[Any]) -> Values:
        """The window of an original (H, W) image: (side, side) float32, flipped if ``mirror``, 0 outside the image."""
        window = np.zeros((self.side, self.side), np.float32)
        there, here = self._overlap()
        window[here] = values[there]
        return np.ascontiguousarray(window[:, ::-1]) if self.mirror else window

    def content(self, square: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The part of a prepared square (S, S) that shows the image, without the padding."""
        _, (rows, columns) = self._overlap()
        if self.mirror:
            columns = slice(self.side - columns.stop, self.side - columns.start)
        top, left = (math.ceil(part.start * self.scale) for part in (rows, columns))
        bottom, right = (math.floor(part.stop * self.scale) for part in (rows, columns))
        return square[min(top, self.size - 1) : max(bottom, top + 1), min(left, self.size - 1) : max(right, left + 1)]

    def prepare_mask(self, mask: npt.NDArray[Any]) -> Bytes:
        """A mask (H, W) of the original image as (S, S) uint8, 1 if it covers at least half of a pixel."""
        if mask.shape != (self.height, self.width):
            raise ValueError(f"a mask of shape {mask.shape}; the image is ({self.height}, {self.width})")
        return (_resize(self.cut(np.asarray(mask) > 0), self.size, up=cv2.INTER_LINEAR) >= 0.5).astype(np.uint8)

    def _overlap(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The overlap of image and window, in the coordinates of each."""
        rows = max(self.top, 0), min(self.top + self.side, self.height)
        columns = max(self.left, 0), min(self.left + self.side, self.width)
        there = slice(*rows), slice(*columns)
        here = slice(rows[0] - self.top, rows[1] - self.top), slice(columns[0] - self.left, columns[1] - self.left)
        return there, here


def square_geometry(
    height: int, width: int, size: int, *, mirror: bool = False, box: tuple[int, int, int, int] | None = None
) -> Geometry:
    """The smallest centered square around an image, or around a ``box`` (top, left, height, width) of it."""
    top, left, box_height, box_width = box or (0, 0, height, width)
    if min(top, left) < 0 or min(box_height, box_width) < 1 or top + box_height > height or left + box_width > width:
        raise ValueError(f"box {box} is not within the image of {width} × {height} pixels")
    side = max(box_height, box_width)
    return Geometry(
        height=height,
        width=width,
        top=top - (side - box_height) // 2,
        left=left - (side - box_width) // 2,
        side=side,
        size=size,
        mirror=mirror,
    )


def prepare(
    values: npt.NDArray[Any],
    size: int,
    *,
    percentiles: tuple[float, float] = (0.5, 99.5),
    invert: bool = False,
    mirror: bool = False,
    box: tuple[int, int, int, int] | None = None,
) -> tuple[Bytes, Geometry]:
    """Scale between two percentiles to 0–255, pad with black to a square, flip, and resize.

    Args:
        values: (H, W), finite.
        size: S, the side of the result.
        percentiles: of the (cropped) image; mapped to black and white. A constant image becomes black.
        invert: turn a negative into a positive (before padding, which is black either way).
        mirror: flip horizontally, so that left and right knees look alike.
        box: (top, left, height, width) of the part to use.

    Returns:
        (S, S) uint8 and its geometry. Shrinking averages over areas; enlarging uses cubic interpolation.
    """
    height, width = values.shape
    geometry = square_geometry(height, width, size, mirror=mirror, box=box)
    if box is not None:
        rows, columns = slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3])
    else:
        rows, columns = slice(0, height), slice(0, width)
    scaled = _to_unit(np.asarray(values[rows, columns], np.float32), percentiles)
    framed = np.zeros((height, width), np.float32)
    framed[rows, columns] = 1 - scaled if invert else scaled
    square = _resize(geometry.cut(framed), size, up=cv2.INTER_CUBIC)
    return np.rint(np.clip(square, 0, 1) * 255).astype(np.uint8), geometry


def _to_unit(values: Values, percentiles: tuple[float, float]) -> Values:
    """Values between the two percentiles as 0 to 1, clipped; large images are sampled on a grid for the percentiles."""
    step = max(1, int(np.ceil(np.sqrt(values.size / _MOST_SAMPLES))))
    low, high = np.percentile(values[::step, ::step], percentiles)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros_like(values)
    return np.asarray(np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1), np.float32)


def _resize(square: Values, size: int, *, up: int) -> Values:
    if square.shape[0] == size:
        return square
    interpolation = cv2.INTER_AREA if size < square.shape[0] else up
    return np.asarray(cv2.resize(square, (size, size), interpolation=interpolation), np.float32)
