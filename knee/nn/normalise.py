"""Normalisation of input images to zero mean and unit deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # a configuration is read without torch
    from torch import Tensor, device

Normalise = Literal["image", "fixed", "local"]
"""image: each image by its own mean and deviation (z-scores, as is usual for MR, whose intensities have no unit);
local: each pixel by those of its neighbourhood, for radiographs, whose exposure also varies within the image;
fixed: all images by the mean and deviation of the training set or of the weights."""

LEAST_DEVIATION = 0.02
"""About 5 of 256 gray levels. An image with a smaller deviation is empty, and its noise must not be amplified."""

NEIGHBOURHOOD = 0.09
"""Standard deviation of the Gaussian neighbourhood, as a share of the image's longer side."""


def normalised(images: Tensor, mean: Tensor, std: Tensor, kind: Normalise) -> Tensor:
    """images (B, 1, H, W) in [0, 1] → zero mean, unit deviation; ``mean`` and ``std``, broadcast, where ``kind`` is fixed.

    With "image" and "local", a change of brightness or contrast without clipping does not change the result (with "local"
    except for the effect of ``LEAST_DEVIATION`` on the deviation).
    """
    if kind == "fixed":
        return (images - mean) / std
    if kind == "local":
        return _locally_normalised(images)
    deviation = images.std((1, 2, 3), correction=0, keepdim=True)
    return (images - images.mean((1, 2, 3), keepdim=True)) / deviation.clamp_min(LEAST_DEVIATION)


def _locally_normalised(images: Tensor) -> Tensor:
    """Local contrast normalisation (Jarrett et al. 2009, doi:10.1109/ICCV.2009.5459469): z-scores in a Gaussian neighbourhood.

    The Gaussian mean is computed by two small matrix products, one for each axis; pixels outside the image have no weight.
    """
    import torch

    height, width = images.shape[-2:]
    deviation = NEIGHBOURHOOD * max(height, width)
    with torch.autocast(images.device.type, enabled=False):
        images = images.float()
        rows, columns = (_gaussian_weights(size, deviation, images.device) for size in (height, width))
        centered = images - rows @ images @ columns.T
        variance = rows @ centered.square() @ columns.T
        return centered / (variance + LEAST_DEVIATION**2).sqrt()


def _gaussian_weights(size: int, deviation: float, device: device) -> Tensor:
    """(size, size): row i has the weights of all places for the mean at place i; each row sums to 1."""
    import torch

    places = torch.arange(size, dtype=torch.float32, device=device)
    weights = torch.exp(-(places[:, None] - places).square() / (2 * deviation**2))
    return weights / weights.sum(1, keepdim=True)
