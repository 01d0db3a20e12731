"""Two augmented views of one image: they share the geometric transform; photometric transforms are drawn independently.

Attention maps of the student and the teacher can be compared pixel by pixel only if both networks saw the same crop, flip
and rotation. The transforms are albumentations' (``knee.data.augmentation``). This module makes the geometry shared, and
makes the random numbers depend only on the sample's seed.
"""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from knee.data.view_config import PRESETS, ViewConfig, no_views, strong_views, views_from, weak_views

__all__ = [
    "PRESETS",
    "ImageArray",
    "TwoViews",
    "ViewConfig",
    "Views",
    "draw_seed",
    "no_views",
    "strong_views",
    "views_from",
    "weak_views",
]

ImageArray = npt.NDArray[np.uint8]


class TwoViews(NamedTuple):
    """Two views of one image, and its mask under the geometric transform of both."""

    student: ImageArray
    """uint8 (S, S)."""
    teacher: ImageArray
    """uint8 (S, S)."""
    mask: ImageArray | None
    """uint8 (S, S) in {0, 1}, or None if the image has none."""
    content: ImageArray | None = None
    """uint8 (S, S), 0 in the padding and wherever it was moved to; None if the image has no padding."""


class Views:
    """Draws the two views of a sample; the same seed gives the same views, in any process and after any other calls.

    Not thread-safe: the pipelines hold the random state of the current sample.
    """

    def __init__(self, config: ViewConfig, size: int) -> None:
        self.config = config
        self.size = size
        # Imported here: importing albumentations takes seconds, and reading a configuration does not need it.
        from knee.data.augmentation import geometry, photometrics

        self._geometry = geometry(config)
        self._student = photometrics(config)
        self._teacher = photometrics(_teacher_config(config))

    def __reduce__(self) -> tuple[type[Views], tuple[ViewConfig, int]]:
        """Workers rebuild the pipelines from the configuration."""
        return Views, (self.config, self.size)

    def __call__(
        self, image: ImageArray, mask: ImageArray | None = None, *, content: ImageArray | None = None, seed: int
    ) -> TwoViews:
        """Image uint8 (S, S), mask and content uint8 (S, S) in {0, 1} or None; ``seed`` ≥ 0, see ``draw_seed``.

        The input is never modified, and the result never shares its memory.
        """
        if image.shape != (self.size, self.size) or (mask is not None and mask.shape != image.shape):
            shapes = f"image {image.shape}" + ("" if mask is None else f", mask {mask.shape}")
            raise ValueError(f"views of size {self.size} got {shapes}")
        # All pipelines share one pair of generators. Compose.set_random_seed would give every transform its own
        # generator with the same seed, so that flip, rotation and contrast would be correlated.
        generators = np.random.default_rng(seed), random.Random(seed)
        for pipeline in (self._geometry, self._student, self._teacher):
            pipeline.set_random_state(*generators)
        # A mask of None consumes the same random numbers, so a sample's views are the same with and without its mask.
        moved = self._geometry(
            image=np.array(image),
            mask=None if mask is None else np.array(mask),
            content=None if content is None else np.array(content),
        )
        student = self._student(image=moved["image"])["image"]
        teacher = self._teacher(image=moved["image"])["image"]
        return TwoViews(student, teacher if teacher is not student else teacher.copy(), moved["mask"], moved["content"])


def draw_seed(seed: int, stream: str, position: int) -> int:
    """The seed of one draw, in [0, 2⁶³): a hash of the run's seed, the stream and the draw's number within it.

    >>> draw_seed(0, "labeled", 7) == draw_seed(0, "labeled", 7)
    True
    >>> draw_seed(0, "labeled", 7) == draw_seed(0, "unlabeled", 7)
    False
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _teacher_config(config: ViewConfig) -> ViewConfig:
    if config.teacher_photometric == "same":
        return config
    return weak_views() if config.teacher_photometric == "weak" else no_views()
