"""The albumentations pipelines that augment images: geometric and photometric transforms.

Importing this module imports albumentations, which takes seconds. ``knee.data.views`` imports it when the first ``Views``
is built, so reading a configuration stays fast. Two transforms are our own, subclasses of albumentations' base classes:
at 96 px, albumentations' ``Affine`` and ``GaussNoise`` would take half of the time needed for two views.
"""

from __future__ import annotations

import os
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

# At import, albumentations asks a server for its newest release unless this variable is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

if TYPE_CHECKING:
    from knee.data.view_config import ViewConfig

_LEVELS = np.array([NormalDist().inv_cdf((level + 0.5) / 256) for level in range(256)])
_UNIT_LEVELS = _LEVELS / _LEVELS.std()


def geometry(config: ViewConfig) -> Any:
    """Horizontal flip and one affine warp of an image (bilinear), its mask and content (nearest neighbour); black outside."""
    steps: list[Any] = []
    if config.horizontal_flip > 0:
        steps.append(A.HorizontalFlip(p=config.horizontal_flip))
    if max(config.rotate_degrees, config.translate, config.zoom_out, config.zoom_in) > 0:
        steps.append(Pose(config))
    return A.Compose(steps, additional_targets={"content": "mask"})


def photometrics(config: ViewConfig) -> Any:
    """Exposure, blur and noise, in the order in which a detector adds them; cutout (black rectangles) last."""
    steps: list[Any] = []
    if config.brightness > 0 or config.contrast > 0:
        brightness, contrast = (-config.brightness, config.brightness), (-config.contrast, config.contrast)
        steps.append(A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=1))
    if config.gamma > 0:
        steps.append(A.RandomGamma(gamma_limit=(100 * (1 - config.gamma), 100 * (1 + config.gamma)), p=1))
    if config.blur_pixels > 0:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, config.blur_pixels), p=1))
    if config.noise > 0:
        steps.append(LevelNoise(config.noise))
    if config.cutout_count > 0 and config.cutout_size > 0:
        sides = (config.cutout_size / 2, config.cutout_size)
        # CoarseDropout draws at least one hole: no hole at all must have probability 1 / (count + 1).
        chance = config.cutout_count / (config.cutout_count + 1)
        count = (1, config.cutout_count)
        steps.append(A.CoarseDropout(num_holes_range=count, hole_height_range=sides, hole_width_range=sides, p=chance))
    return A.Compose(steps)


class Pose(A.DualTransform):  # type: ignore[misc]
    """Rotation and scaling about the image's center, then translation: one warp, the same for image and mask.

    ``A.Affine`` of albumentations 2.0 does the same but takes three times as long, mostly for checks around the warp.
    """

    def __init__(self, config: ViewConfig) -> None:
        """Uses the rotation, translation and scale of ``config``."""
        super().__init__(p=1)
        self.rotate_degrees = config.rotate_degrees
        self.translate = config.translate
        self.scales = (1 - config.zoom_out, 1 + config.zoom_in)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the affine matrix of one view."""
        height, width = params["shape"][:2]
        uniform = self.py_random.uniform
        center = (width - 1) / 2, (height - 1) / 2
        angle = uniform(-self.rotate_degrees, self.rotate_degrees)
        matrix = cv2.getRotationMatrix2D(center, angle, uniform(*self.scales))
        matrix[0, 2] += width * uniform(-self.translate, self.translate)
        matrix[1, 2] += height * uniform(-self.translate, self.translate)
        return {"matrix": matrix}

    def apply(self, img: Any, matrix: Any, **params: Any) -> Any:
        """Warp the image, interpolating linearly."""
        return cv2.warpAffine(img, matrix, img.shape[1::-1], flags=cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: Any, matrix: Any, **params: Any) -> Any:
        """Warp the mask; each pixel takes its nearest neighbour."""
        return cv2.warpAffine(mask, matrix, mask.shape[1::-1], flags=cv2.INTER_NEAREST)


class LevelNoise(A.ImageOnlyTransform):  # type: ignore[misc]
    """Gaussian noise for uint8 images, drawn from 256 equally likely levels of the normal distribution (within ± 2.9 σ).

    ``A.GaussNoise`` of albumentations 2.0 takes four times as long, seeds OpenCV's global generator, and has only
    65,536 noise patterns, each of which would recur many times in a long training.
    """

    def __init__(self, largest: float) -> None:
        """``largest``: the standard deviation is uniform in [0, largest], as a fraction of the full range."""
        super().__init__(p=1)
        self.largest = largest

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the standard deviation and the noise of one view."""
        height, width = params["shape"][:2]
        draws = np.frombuffer(self.random_generator.bytes(height * width), np.uint8).reshape(height, width)
        deviation = 255 * self.py_random.uniform(0, self.largest)
        return {"noise": cv2.LUT(draws, np.rint(deviation * _UNIT_LEVELS).astype(np.int16))}

    def apply(self, img: Any, noise: Any, **params: Any) -> Any:
        """Add the noise, saturating at 0 and 255."""
        return cv2.add(img, noise, dtype=cv2.CV_8U)
