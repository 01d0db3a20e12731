"""Grading of an image and its horizontal flip together, to compare or to average the two predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from knee.task import Grader, Grading


def with_flipped(grader: Grader, images: Tensor, *, count: int | None = None) -> tuple[Grading, Grading]:
    """The gradings of the images, and of the horizontal flips of the first ``count`` (default all), in one forward pass.

    images (B, 1, H, W) in [0, 1]. The class maps of the second are flipped back, so that the two can be compared
    position by position. In train mode batch statistics are those of images and flips together.
    """
    size = images.shape[0]
    logits, maps = grader(torch.cat([images, images[:count].flip(3)]))
    return Grading(logits[:size], maps[:size]), Grading(logits[size:], maps[size:].flip(3))


def mean_logits(logits: Tensor, others: Tensor) -> Tensor:
    """Logits of the mean of two predictions: the logarithm of ½ (softmax z + softmax z').

    Both (B, K) → (B, K), float32, at most 0. MixMatch averages its guessed labels over several views in
    the same way (Berthelot et al. 2019, Eq. 6).
    """
    both = torch.stack([logits.float().log_softmax(1), others.float().log_softmax(1)])
    return both.logsumexp(0) - math.log(2)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen–Shannon divergence of two sets of distributions, both (…, K): (…) in [0, ln 2], in nats."""
    middle = torch.special.entr((first + second) / 2).sum(-1)
    divergence: Tensor = middle - (torch.special.entr(first) + torch.special.entr(second)).sum(-1) / 2
    return divergence.clamp(0.0, math.log(2))  # rounding can exceed either bound by 1e-7


class FlipAveraged(nn.Module):
    """Flip test-time augmentation (TTA): predictions averaged over an image and its horizontal flip.

    An image and its flip get the same probabilities, and class maps that are flips of each other. It takes twice the time,
    and is useful where left and right carry the same information, as in a frontal radiograph.
    """

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader

    def forward(self, images: Tensor) -> Grading:
        """Images (B, 1, H, W) in [0, 1]; class maps (B, K, h, w) are averaged as well, in the image's own orientation."""
        grading, flipped = with_flipped(self.grader, images)
        return Grading(mean_logits(grading.logits, flipped.logits), (grading.class_maps + flipped.class_maps) / 2)
