"""Attention: class maps → scaled map x → soft mask f.

Guided attention inference (Li et al. 2018), as Huo et al. (2020, section 2.2) use it: the map of one class is rectified,
up-sampled and scaled to x in [0, 1] per image; f = σ(ω(x − σ₀)) is a soft threshold, so that losses have a gradient.
Everything here runs in float32 in any autocast context, since half precision is too coarse at ω = 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from knee.errors import require

SHARPNESS = 100.0
"""ω of the authors' release."""
THRESHOLD = 0.4
"""σ₀ of the authors' release."""
_SMALLEST_RANGE = 1e-6


def rectified_map(class_maps: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """The map of each image's class, rectified and up-sampled bilinearly, not scaled.

    class_maps (B, K, h, w), classes (B,) int64 in [0, K), size (H, W) → (B, H, W) float32, ≥ 0.
    Its maximum is the strength of the evidence, which the scaled map no longer contains.
    """
    places = classes[:, None, None, None].expand(-1, 1, *class_maps.shape[2:])
    chosen = class_maps.gather(1, places)[:, 0].float().relu()
    with torch.autocast(class_maps.device.type, enabled=False):
        rows = _interpolation(chosen.shape[1], size[0], chosen.device)
        columns = _interpolation(chosen.shape[2], size[1], chosen.device)
        return rows @ chosen @ columns.T


@cache
def _interpolation(positions: int, pixels: int, device: torch.device) -> Tensor:
    """Linear interpolation from ``positions`` to ``pixels`` as a matrix (pixels, positions).

    Two small products take less than a tenth of the time of torch's bilinear kernel and its gradient on a CPU (0.6 against
    11 ms for 30 maps of 12 × 12 to 96 × 96); the weights are torch's (``align_corners=False``).
    """
    # Otherwise a first call in inference mode would cache a matrix that cannot be used with gradients.
    with torch.inference_mode(False):
        unit = torch.eye(positions, device=device)
        return F.interpolate(unit[:, None], size=pixels, mode="linear", align_corners=False)[:, 0].T.contiguous()


def attention_map(
    class_maps: Tensor, classes: Tensor, size: tuple[int, int], *, content: Tensor | None = None
) -> Tensor:
    """The class's map scaled to x in [0, 1] per image.

    class_maps (B, K, h, w), classes (B,) int64 in [0, K), size (H, W) → (B, H, W) float32. A map that is constant
    after rectification (for example all zero) is empty: x = 0 everywhere. Differentiable in ``class_maps``. With ``content``
    (B, H, W) bool, x is 0 where it is false, as in the padding of an image.
    """
    x, _ = _scaled(_within(rectified_map(class_maps, classes, size), content))
    return x


def attention_mask(
    class_maps: Tensor,
    classes: Tensor,
    size: tuple[int, int],
    *,
    sharpness: float = SHARPNESS,
    threshold: float = THRESHOLD,
    content: Tensor | None = None,
) -> Tensor:
    """The soft mask f = σ(ω(x − σ₀)) of the class's map; ω is ``sharpness``, σ₀ is ``threshold``.

    class_maps (B, K, h, w), classes (B,) int64 in [0, K), size (H, W) → (B, H, W) float32 in [0, 1]. An empty map gives
    exactly f = 0 (see ``empty_attention``). Differentiable in ``class_maps``. ``content`` is as for ``attention_map``.
    """
    x, shows = _scaled(_within(rectified_map(class_maps, classes, size), content))
    return soft_threshold(x, sharpness=sharpness, threshold=threshold) * shows[:, None, None]


def soft_threshold(x: Tensor, *, sharpness: float = SHARPNESS, threshold: float = THRESHOLD) -> Tensor:
    """f = σ(ω(x − σ₀)) elementwise, in float32.

    >>> soft_threshold(torch.tensor([0.0, 0.4, 1.0])).round(decimals=3).tolist()
    [0.0, 0.5, 1.0]
    """
    return torch.sigmoid(sharpness * (x.float() - threshold))


def empty_attention(attention: Tensor) -> Tensor:
    """(B, H, W) soft masks → (B,) bool: whether the map is empty, so that its soft mask is exactly zero."""
    return attention.detach().flatten(1).amax(1) == 0


def gradient_share(attention: Tensor, *, at_least: float = 0.0066) -> Tensor:
    """The share of pixels at which the soft threshold passes a gradient; scalar in [0, 1].

    The slope of σ is f(1 − f); 0.0066 is its value at |x − σ₀| = 0.05 for ω = 100. A share near zero means that the
    sharpness is too high for the attention loss to move the map.
    """
    f = attention.detach()
    return (f * (1 - f) > at_least).float().mean()


def _within(x: Tensor, content: Tensor | None) -> Tensor:
    return x if content is None else x * content


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, W) → x in [0, 1] per image, and (B,) whether the map is not empty."""
    # max and min rather than amax and amin: their gradient goes to one pixel and costs half.
    low = x.flatten(1).min(1).values[:, None, None]
    span = x.flatten(1).max(1).values[:, None, None] - low
    shows = span > _SMALLEST_RANGE
    # The inner where keeps the gradient of a constant map finite; 0 / 0 would make the gradient of the whole batch NaN.
    scaled = torch.where(shows, (x - low) / torch.where(shows, span, torch.ones_like(span)), torch.zeros_like(x))
    return scaled, shows[:, 0, 0]


@dataclass(frozen=True)
class AttentionConfig:
    """How attention is computed from class maps."""

    sharpness: float = 100.0
    """ω of the soft threshold."""
    threshold: float = 0.4
    """σ₀ of the soft threshold."""
    detach_classifier: bool = True
    """The classifier's weights get no gradient through the class maps."""

    def __post_init__(self) -> None:
        require(self.sharpness > 0, "attention.sharpness", self.sharpness, "above 0")
        require(0 < self.threshold < 1, "attention.threshold", self.threshold, "in (0, 1)")
