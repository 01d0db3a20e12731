"""Detect pictures of both knees by comparing their halves with the mean knee."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from knee.images.negatives import Values, agreement

WIDE = 1.6
"""An image whose width is at least this many times its height may show both knees."""
_LEAST = 0.5


def shows_two(values: npt.NDArray[Any], knee: Values) -> bool:
    """Whether both halves of an image (H, W) look more like the mean knee (32, 32) or its mirror image than the whole does.

    Each half must correlate by at least 0.5. Of 150 pairs of radiographs side by side all are detected, of 826 single ones
    none; pairs with wide borders around them are not (docs/log.md, 2026-11-30).
    """
    half = values.shape[1] // 2
    if half < 1:
        return False
    halves = min(_similarity(values[:, :half], knee), _similarity(values[:, -half:], knee))
    return halves > max(_LEAST, _similarity(values, knee))


def _similarity(values: npt.NDArray[Any], knee: Values) -> float:
    return max(agreement(values, knee), agreement(values, knee[:, ::-1]))
