"""Masked reconstruction: what is hidden before any network sees it, and the losses of guessing it.

Each loss is a mean over what is hidden; of several processes, the mean of their values is that over all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from image_text.joint.model import PATCH, Fused, JointModel
from image_text.text import FIRST_WORD, MASK
from knee.nn.processes import share_of_mean


class Hidden(NamedTuple):
    """A batch with parts hidden, and which."""

    images: Tensor
    """(B, 1, H, W): hidden positions are gray."""
    tokens: Tensor
    """(B, L): hidden words are MASK."""
    patches: Tensor
    """(B, h · w) bool: hidden positions of the image."""
    words: Tensor
    """(B, L) bool."""
    cells: Tensor
    """(B, C) bool."""


def hide(images: Tensor, tokens: Tensor, there: Tensor, grid: tuple[int, int], *, share: float) -> Hidden:
    """Hide a ``share`` of the positions of images (B, 1, H, W), of words (B, L) and of the cells that are ``there`` (B, C).

    Draws from torch's global generator, which a resumed run restores. Hidden pixels and words do not reach any network.
    """
    count = len(images)
    patches = torch.rand(count, *grid, device=images.device) < share
    covered = F.interpolate(patches[:, None].float(), size=images.shape[-2:], mode="nearest") > 0
    words = (torch.rand(tokens.shape, device=images.device) < share) & (tokens >= FIRST_WORD)
    cells = (torch.rand(there.shape, device=images.device) < share) & there
    return Hidden(torch.where(covered, 0.5, images), torch.where(words, MASK, tokens), patches.flatten(1), words, cells)


def patch_targets(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """images (B, 1, H, W) → (B, h · w, PATCH²): mean gray values of PATCH × PATCH squares of each position; no gradient."""
    height, width = grid
    small = F.adaptive_avg_pool2d(images.detach().float(), (height * PATCH, width * PATCH))
    squares = small.reshape(len(images), height, PATCH, width, PATCH).permute(0, 1, 3, 2, 4)
    return squares.reshape(len(images), height * width, PATCH * PATCH)


def patch_loss(found: Fused, targets: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over hidden positions; (B, P, PATCH²) twice, hidden (B, P) → scalar, 0 if none is hidden."""
    return _mean((found.patches.float() - targets).square().mean(2), hidden)


def word_loss(model: JointModel, found: Fused, tokens: Tensor, hidden: Tensor) -> Tensor:
    """Cross-entropy of the hidden words, tokens (B, L) as they were; scalar, 0 if none is hidden."""
    length = found.words.shape[1]
    chosen, words = hidden[:, :length], tokens[:, :length]
    share = share_of_mean(int(chosen.sum()), found.words.device)
    if not chosen.any():
        return model.text.guess(found.words[:, :1]).sum() * 0.0  # all processes need a gradient of the same parameters
    return share * F.cross_entropy(model.text.guess(found.words[chosen]).float(), words[chosen])


def cell_loss(found: Fused, standardised: Tensor, categories: Tensor, hidden: Tensor) -> Tensor:
    """Squared error of hidden numbers, and cross-entropy of hidden categories (B, C); scalar, 0 if none is hidden."""
    numeric = hidden & ~standardised.isnan()
    named = hidden & (categories >= 0)
    loss = _mean((found.numbers.float() - standardised.nan_to_num(0.0)).square(), numeric)
    return loss + _mean_entropy(found.categories, categories, named)


def _mean_entropy(logits: Tensor, classes: Tensor, chosen: Tensor) -> Tensor:
    share = share_of_mean(int(chosen.sum()), logits.device)
    if not chosen.any():
        return logits.sum() * 0.0  # all processes need a gradient of the same parameters
    return share * F.cross_entropy(logits[chosen].float(), classes[chosen])


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum()
    return share_of_mean(int(count), values.device) * (values * chosen).sum() / count.clamp_min(1)
