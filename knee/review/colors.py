"""The colours of attention, the same in the review file, in figures and in DICOM: fixed scales, never stretched."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

OPACITY = 0.65
"""At x = 1."""
STUDENT = (232, 163, 61)
"""RGB: amber; with the teacher's blue it stays apart for every common colour vision."""
TEACHER = (76, 155, 232)


@cache
def heat_colors() -> NDArray[np.uint8]:
    """(256, 3) RGB for x from 0 to 1, as in ``knee.evaluation.overlays``: the middle of inferno, lightness rising evenly."""
    from matplotlib import colormaps

    return np.round(colormaps["inferno"](np.linspace(0.35, 0.85, 256))[:, :3] * 255).astype(np.uint8)


@cache
def difference_colors() -> NDArray[np.uint8]:
    """(256, 3) RGB for student − teacher from −1 to 1: the teacher's blue over white to the student's amber."""
    share = np.linspace(-1, 1, 256)[:, None]
    end = np.where(share < 0, np.array(TEACHER), np.array(STUDENT))
    return np.round(255 + (end - 255) * np.sqrt(np.abs(share))).astype(np.uint8)


def heat_alpha(x: NDArray[np.float32], *, opacity: float, threshold: float = 0.0) -> NDArray[np.float32]:
    """How much colour covers the image at each x: none up to the threshold, then opacity · x^1.3.

    x in [0, 1], any shape → the same shape in [0, opacity]. ``knee.evaluation.overlays`` and the review file's script hold the
    same formula; the threshold has a soft edge of 0.04, so that it draws no steps.
    """
    covered = opacity * np.clip(x, 0, 1) ** 1.3 * np.clip((x - threshold) / 0.04, 0, 1)
    return np.asarray(covered, np.float32)


def paint(image: NDArray[np.uint8], x: NDArray[np.float32], *, opacity: float = OPACITY) -> NDArray[np.uint8]:
    """Image (H, W) and x (H, W) in [0, 1] → RGB (H, W, 3) uint8, the attention blended over the image."""
    alpha = heat_alpha(x, opacity=opacity)[..., None]
    color = heat_colors()[np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)]
    return np.round(image[..., None] * (1 - alpha) + color * alpha).astype(np.uint8)
