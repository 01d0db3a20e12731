"""An image and its mirror image, graded together: what terms that compare the two answers start from."""

from __future__ import annotations

import torch
from torch import Tensor

from knee.task import Grader, Grading


def with_flipped(grader: Grader, images: Tensor, *, count: int | None = None) -> tuple[Grading, Grading]:
    """The gradings of the images and of the mirror images of the first ``count`` (all), by one forward pass.

    images (B, 1, H, W) in [0, 1]. The class maps of the second are mirrored back, so that the two can be compared
    position by position. In train mode batch statistics are those of images and mirror images together.
    """
    size = len(images)
    logits, maps = grader(torch.cat([images, images[:count].flip(3)]))
    return Grading(logits[:size], maps[:size]), Grading(logits[size:], maps[size:].flip(3))
