"""The evidence map: which pixels decide between the predicted grade and the next one, at the resolution of the input.

Attention (Huo et al. 2020) is a class map on the grid of the last feature map: it shows where features of the predicted
grade are, also those it shares with its neighbours. The evidence map is the gradient of the margin between the predicted grade
and the most probable other one with respect to the pixels (Simonyan et al. 2014, arXiv:1312.6034, there of one logit), averaged
in a small neighbourhood. It needs one backward pass, and works with any ``Grader``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from knee.grades import Decision, decide
from knee.nn.padding import content_of
from knee.task import Grader, Grading

BLUR = 1.5 / 96
"""Standard deviation of the neighbourhood, as a share of the image's side."""
_REACH = 3
_SMALLEST = 1e-12


class Evidence(NamedTuple):
    """Evidence maps of a batch."""

    grading: Grading
    """The output for the images, without gradient."""
    maps: Tensor
    """(B, S, S) float32 in [0, 1], scaled per image by its maximum; all zero where no pixel matters, and in the padding."""
    against: Tensor
    """(B,) int64: the most probable other grade, which the predicted one is compared with."""


def evidence_maps(
    grader: Grader, images: Tensor, *, precision: torch.dtype | None = None, decision: Decision = "likeliest"
) -> Evidence:
    """E = G_σ ∗ |∂(z_a − z_b) / ∂ image| with a the grade that is called, b the most probable other one, G_σ a Gaussian.

    images (B, 1, S, S) float32 in [0, 1]; the network should be in eval mode. ``precision`` is the autocast type.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
            grading = grader(pixels)
        logits = grading.logits.detach().float()
        first = decide(logits.softmax(1), decision)
        second = logits.scatter(1, first[:, None], -torch.inf).argmax(1)
        rows = torch.arange(len(images), device=images.device)
        margin = grading.logits[rows, first].float() - grading.logits[rows, second].float()
        slope = torch.autograd.grad(margin.sum(), pixels)[0] if margin.requires_grad else torch.zeros_like(pixels)
    smooth = gaussian_blur(slope.float().abs().nan_to_num(0, 0, 0), BLUR * images.shape[-1])[:, 0] * content_of(images)
    most = smooth.amax((1, 2), keepdim=True)
    maps = torch.where(most > _SMALLEST, smooth / most.clamp_min(_SMALLEST), torch.zeros_like(smooth))
    return Evidence(Grading(grading.logits.detach(), grading.class_maps.detach()), maps, second)


def gaussian_blur(images: Tensor, deviation: float) -> Tensor:
    """images (B, 1, H, W) → the same shape: the mean in a Gaussian neighbourhood of ``deviation`` pixels, 0 outside the image.

    A single pixel of 1 becomes the kernel, whose sum is 1.
    """
    reach = max(1, round(_REACH * deviation))
    places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-places.square() / (2 * deviation**2))
    weights = weights / weights.sum()
    rows = F.conv2d(images, weights[None, None, :, None], padding=(reach, 0))
    return F.conv2d(rows, weights[None, None, None, :], padding=(0, reach))
