"""Zero mean and unit deviation for what a network sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # a configuration is read without torch
    from torch import Tensor

Normalise = Literal["image", "fixed"]
"""image: each image by its own mean and deviation (z-scores, as is usual for MR, whose intensities have no unit, and good for
radiographs of any exposure); fixed: all by the same, those of the training set or of the weights."""

LEAST_DEVIATION = 0.02
"""About 5 of 256 grey levels: an image with less is empty, and its noise is not to be blown up."""


def normalised(images: Tensor, mean: Tensor, std: Tensor, kind: Normalise) -> Tensor:
    """images (B, 1, H, W) in [0, 1] → zero mean, unit deviation; ``mean`` and ``std``, broadcast, where ``kind`` is fixed.

    With "image", a change of brightness or contrast that clips nothing leaves the result as it is.
    """
    if kind == "fixed":
        return (images - mean) / std
    deviation = images.std((1, 2, 3), correction=0, keepdim=True)
    return (images - images.mean((1, 2, 3), keepdim=True)) / deviation.clamp_min(LEAST_DEVIATION)
