"""Padding of non-square images: marked in the networks' input, and excluded from pooling and from class maps.

An image that is not square is centered in a black square (``knee.images.geometry.prepare``). In the networks' input its
padding is −0.0: for any arithmetic it is black, so that a network need not know of it, and the sign bit tells it from a black
pixel, through flips, batches and half precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -0.0
"""The value of padding in the networks' input."""
EXPORTED_PADDING = -1e-30
"""The same within an ONNX file, whose operators know no sign of zero: it changes no sum with another number in float32."""
LEAST_BAR = 3
"""Narrower bars are not detected: images may have one or two black rows of their own."""


def as_input(images: Tensor) -> Tensor:
    """Prepared images (B, 1, H, W) uint8 as the networks' input, float32 in [0, 1] with padding marked; floats are returned.

    Padding is detected by ``padded_content``, since prepared images do not carry their geometry.
    """
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"images {tuple(images.shape)} must be (B, 1, S, S)")
    if images.dtype != torch.uint8:
        return images.float()
    return mark_padding(images.float() / 255, padded_content(images))


def padded_content(images: Tensor) -> Tensor:
    """Where prepared images (B, 1, H, W) uint8 are not padding: (B, H, W) bool.

    Padding is a pair of black bars of equal width at opposite edges, at least ``LEAST_BAR`` pixels wide.
    """
    shown = images[:, 0] > 0
    rows, columns = _between_bars(shown.any(2)), _between_bars(shown.any(1))
    return rows[:, :, None] & columns[:, None, :]


def _between_bars(shown: Tensor) -> Tensor:
    """(B, N) bool, whether a row is not black → (B, N) bool, whether it is between the bars."""
    number = shown.shape[1]
    bar = torch.minimum(shown.int().argmax(1), shown.flip(1).int().argmax(1))
    bar = torch.where(bar >= LEAST_BAR, bar, 0)[:, None]
    place = torch.arange(number, device=shown.device)
    return (place >= bar) & (place < number - bar)


def content_of(images: Tensor) -> Tensor:
    """Where the images (B, 1, H, W) show something: (B, H, W) bool, false in the padding."""
    return ~_is_padding(images)[:, 0]


def _is_padding(images: Tensor) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        return images < 0
    return torch.signbit(images) & (images == 0)


def mark_padding(images: Tensor, content: Tensor) -> Tensor:
    """images (B, 1, H, W) in [0, 1] with ``PADDING`` wherever ``content`` (B, H, W) is 0."""
    padding = EXPORTED_PADDING if torch.onnx.is_in_onnx_export() else PADDING
    return images.masked_fill(content[:, None] == 0, padding)


def area_pooled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.adaptive_avg_pool2d``, in an ONNX file by two products with constant matrices, as it has no such operator."""
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_avg_pool2d(images, size)
    rows, columns = (_averages(int(images.shape[2 + axis]), int(size[axis])) for axis in (0, 1))
    return rows @ images @ columns.T


def _averages(pixels: int, positions: int) -> Tensor:
    """(positions, pixels): each row averages the pixels of one position."""
    return F.adaptive_avg_pool1d(torch.eye(pixels), positions).T


def cell_weights(images: Tensor, size: tuple[int, int], *, dtype: torch.dtype | None = None) -> Tensor:
    """Weights of the positions of a feature map by the share of content there: (B, 1, h, w) with mean 1.

    images (B, 1, H, W); ``size`` is (h, w). Positions with less than half of their area inside the image have weight 0, so
    the weighted mean of features is that over the image. Without padding every weight is exactly 1.
    """
    share = area_pooled((~_is_padding(images)).float(), size)
    share = share * (share >= share.amax((2, 3), keepdim=True).clamp_max(0.5))
    return (share / share.mean((2, 3), keepdim=True).clamp_min(1e-6)).to(dtype or images.dtype)
