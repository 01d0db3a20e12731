"""An image and its mirror image, graded together: to compare the two answers, or to answer with their mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from knee.task import Grader, Grading


def with_flipped(grader: Grader, images: Tensor, *, count: int | None = None) -> tuple[Grading, Grading]:
    """The gradings of the images and of the mirror images of the first ``count`` (all), by one forward pass.

    images (B, 1, H, W) in [0, 1]. The class maps of the second are mirrored back, so that the two can be compared
    position by position. In train mode batch statistics are those of images and mirror images together.
    """
    size = len(images)
    logits, maps = grader(torch.cat([images, images[:count].flip(3)]))
    return Grading(logits[:size], maps[:size]), Grading(logits[size:], maps[size:].flip(3))


def mean_logits(logits: Tensor, others: Tensor) -> Tensor:
    """Logits of the mean of two answers: the logarithm of ½ (softmax z + softmax z').

    Both (B, K) → (B, K), float32, at most 0. One who is asked twice answers with the mean, as MixMatch guesses labels from
    several views (Berthelot et al. 2019, Eq. 6).
    """
    both = torch.stack([logits.float().log_softmax(1), others.float().log_softmax(1)])
    return both.logsumexp(0) - math.log(2)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen–Shannon divergence of two sets of distributions, both (…, K): (…) in [0, ln 2], in nats."""
    middle = torch.special.entr((first + second) / 2).sum(-1)
    divergence: Tensor = middle - (torch.special.entr(first) + torch.special.entr(second)).sum(-1) / 2
    return divergence.clamp(0.0, math.log(2))  # rounding can carry it 1e-7 past either bound


class MirroredPair(nn.Module):
    """Mirrored-pair prediction: a grader asked about an image and about its mirror image, which answers with the mean.

    An image and its mirror image get the same probabilities, and class maps that are each other's mirror image. Twice the
    work; worth it where left and right tell the same, as in a frontal radiograph.
    """

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader

    def forward(self, images: Tensor) -> Grading:
        """Images (B, 1, H, W) in [0, 1]; class maps (B, K, h, w) are the mean, too, on the image as it is."""
        seen, mirrored = with_flipped(self.grader, images)
        return Grading(mean_logits(seen.logits, mirrored.logits), (seen.class_maps + mirrored.class_maps) / 2)
