"""Detect photographic negatives among radiographs by comparing every image with the mean image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
SIDE = 32
_MOST_TEMPLATE_IMAGES = 2048


def thumbnail(values: npt.NDArray[Any]) -> Values:
    """An image (H, W) as (32, 32) float32 with mean 0 and deviation 1; all zero for a constant image.

    Left and right knees should have been flipped to one side, and padding removed (``Geometry.content``).
    """
    small = cv2.resize(np.asarray(values, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small = small - small.mean()
    deviation = float(small.std())
    return np.asarray(small / deviation if deviation > 1e-6 else np.zeros_like(small), np.float32)


def mean_thumbnail(thumbnails: Iterable[Values]) -> Values:
    """The mean of thumbnails (32, 32), standardised; thumbnails that correlate negatively are left out in a second pass.

    Correct if more than half of the images are positives.
    """
    stack = np.stack(list(thumbnails)).astype(np.float32)
    first = stack.mean(0)
    agreeing = stack[np.tensordot(stack, first, axes=2) > 0]
    return thumbnail(agreeing.mean(0) if len(agreeing) else first)


def agreement(values: npt.NDArray[Any], template: Values) -> float:
    """Correlation in [−1, 1] of an image (H, W) with a template of ``mean_thumbnail``."""
    return float((thumbnail(values) * template).mean())


def looks_inverted(values: npt.NDArray[Any], template: Values, *, threshold: float = -0.3) -> bool:
    """Whether an image (H, W) looks like the negative of the template: their correlation is below ``threshold``.

    On the 8,260 radiographs of doi:10.17632/56rmx5bjcr.1 at 112 px the 110 negatives lie below −0.73, the others
    above 0.19.
    """
    return agreement(values, template) < threshold


def find_negatives(content: Callable[[int], npt.NDArray[Any]], count: int) -> tuple[Values, npt.NDArray[np.bool_]]:
    """The mean of evenly spaced images, and which of ``count`` images are negatives compared with it.

    ``content(number)`` is an image (H, W) without padding.
    """
    step = -(-count // _MOST_TEMPLATE_IMAGES)
    template = mean_thumbnail(thumbnail(content(number)) for number in range(0, count, step))
    return template, np.array([looks_inverted(content(number), template) for number in range(count)])
