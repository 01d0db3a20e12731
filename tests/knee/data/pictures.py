"""Small images that tests of views share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from knee.data.views import ImageArray, strong_views

SIZE = 64


# Geometry alone, as far as the strong views go.
MOVED = replace(strong_views(), brightness=0, contrast=0, gamma=0, blur_pixels=0, noise=0, cutout_count=0)


def disk(row: float, column: float, radius: float = 8) -> ImageArray:
    """A filled disk: uint8 (SIZE, SIZE) in {0, 1}."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2, dtype=np.uint8)


def gray(value: int = 100) -> ImageArray:
    return np.full((SIZE, SIZE), value, np.uint8)


def random_image(seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
