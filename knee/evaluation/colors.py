"""The colors of attention: the same fixed scales in all pictures, on the review page and in DICOM."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

OPACITY = 0.65
"""Opacity of the overlay at x = 1."""
STUDENT = (232, 163, 61)
"""RGB: amber, which people with any common color vision can distinguish from the teacher's blue."""
TEACHER = (76, 155, 232)


@cache
def heat_colors() -> NDArray[np.uint8]:
    """(256, 3) RGB for x from 0 to 1: the middle of inferno, lightness rising evenly.

    The dark end is left out because it would not be visible on dark tissue, the pale end because it looks like bright tissue.
    """
    from matplotlib import colormaps

    return np.round(colormaps["inferno"](np.linspace(0.35, 0.85, 256))[:, :3] * 255).astype(np.uint8)


@cache
def difference_colors() -> NDArray[np.uint8]:
    """(256, 3) RGB for student − teacher from −1 to 1: the teacher's blue over white to the student's amber."""
    share = np.linspace(-1, 1, 256)[:, None]
    end = np.where(share < 0, np.array(TEACHER), np.array(STUDENT))
    return np.round(255 + (end - 255) * np.sqrt(np.abs(share))).astype(np.uint8)


def heat_cover(x: NDArray[Any]) -> NDArray[np.float32]:
    """The share of the opacity at each x in [0, 1]: slightly steeper than x, so that weak attention does not blur the image.

    >>> heat_cover(np.array([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """
    return np.asarray(np.clip(x, 0, 1) ** 1.3, np.float32)


def paint(image: NDArray[np.uint8], x: NDArray[Any], *, opacity: float = OPACITY) -> NDArray[np.uint8]:
    """Image (H, W) and x (H, W) in [0, 1] → RGB (H, W, 3) uint8, the attention blended over the image."""
    index = cv2.convertScaleAbs(np.asarray(x, np.float32), alpha=255)
    colors, kept = _tables(opacity)
    shaded = ((image * cv2.LUT(index, kept)) >> 8).astype(np.uint8)
    blended: NDArray[np.uint8] = cv2.add(cv2.cvtColor(shaded, cv2.COLOR_GRAY2RGB), cv2.applyColorMap(index, colors))
    return blended


@cache
def _tables(opacity: float) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """By x · 255: the color times its opacity (256, 1, 3), and the weight of the gray value in 1/256 (256,)."""
    share = opacity * heat_cover(np.linspace(0, 1, 256))
    return (heat_colors() * share[:, None]).astype(np.uint8)[:, None], np.round(256 * (1 - share)).astype(np.uint16)
