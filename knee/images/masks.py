"""Cartilage masks: dilation as in the paper, and overlap of two masks per image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.uint8]

PAPER_DILATION = 18.0
"""Width of the authors' dilation, in pixels of an image of 256 (Huo et al. 2020: "a dilation operation")."""


def dilate(mask: NDArray[Any], size_px_at_256: float = PAPER_DILATION) -> Mask:
    """The mask dilated by a disc ``size_px_at_256`` pixels across at 256 px, scaled to this image's longer side.

    mask (H, W) in {0, 1} → uint8 (H, W) in {0, 1}. The disc has an exact radius and is centred on the
    pixel, so it is consistent across image sizes and commutes with flipping, unlike an even-sized kernel. A disc of at most
    one pixel changes nothing. Raises ValueError for another shape or other values.

    >>> dilate(np.array([[0, 0, 1, 0, 0]]), 3 * 256 / 5).tolist()
    [[0, 1, 1, 1, 0]]
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be (H, W) with only the values 0 and 1")
    if not size_px_at_256 >= 0:
        raise ValueError(f"a dilation of {size_px_at_256} px must be 0 or more")
    true = (mask > 0).astype(np.uint8)
    radius = (size_px_at_256 * max(mask.shape) / 256 - 1) / 2
    if radius <= 0 or not true.any():
        return true
    return np.asarray(cv2.dilate(true, _disc(radius)), dtype=np.uint8)


@cache
def _disc(radius: float) -> Mask:
    reach = np.arange(-int(radius), int(radius) + 1)
    return (np.hypot(*np.meshgrid(reach, reach)) <= radius + 1e-3).astype(np.uint8)


@dataclass(frozen=True)
class DilatedMasks:
    """Masks (N, S, S) that are dilated on access, so that no dilated copy is stored."""

    masks: NDArray[np.uint8]
    size_px_at_256: float = PAPER_DILATION

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, rows: Any) -> Mask:
        """The dilated mask (S, S) of one row, or the stack (n, S, S) of an array of rows."""
        chosen = np.asarray(self.masks[rows])
        if chosen.ndim == 2:
            return dilate(chosen, self.size_px_at_256)
        return np.stack([dilate(mask, self.size_px_at_256) for mask in chosen]) if len(chosen) else chosen


def mask_dice(predicted: NDArray[Any], drawn: NDArray[Any]) -> Floats:
    """Dice of predicted and drawn masks, each (N, H, W) in {0, 1}: (N,) in [0, 1].

    NaN if both are empty (0 / 0); 0 if only one is.
    """
    both, first, second = _counts(predicted, drawn)
    return _quotient(2 * both, first + second)


def mask_iou(predicted: NDArray[Any], drawn: NDArray[Any]) -> Floats:
    """Intersection over union of predicted and drawn masks, each (N, H, W) in {0, 1}: (N,), NaN as in `mask_dice`."""
    both, first, second = _counts(predicted, drawn)
    return _quotient(both, first + second - both)


def _counts(predicted: NDArray[Any], drawn: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    predicted, drawn = np.asarray(predicted), np.asarray(drawn)
    if predicted.ndim != 3 or predicted.shape != drawn.shape:
        raise ValueError(f"masks {predicted.shape} and {drawn.shape} must both be (N, H, W) with equal shapes")
    for mask in (predicted, drawn):
        if mask.size and (mask.min() < 0 or mask.max() > 1):
            raise ValueError(f"masks must hold 0 and 1; found {mask.min()} to {mask.max()}")
    first, second = predicted > 0.5, drawn > 0.5
    both, of_first, of_second = (np.count_nonzero(area, axis=(1, 2)) for area in (first & second, first, second))
    return both.astype(np.float64), of_first.astype(np.float64), of_second.astype(np.float64)


def _quotient(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)
