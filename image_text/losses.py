"""The soft CLIP loss and its targets, as pure functions.

With unit embeddings a (images) and b (texts) and scale s, the logits are l_ij = s · a_i · b_j, and

    L = ½ [mean_i H(q_i, softmax_j l_ij) + mean_j H(q'_j, softmax_i l_ij)],   H(q, p) = −Σ q log p.

Targets are given for both directions, each with rows that sum to 1: normalising one and transposing it would not. With q the
identity this is CLIP (Radford et al. 2021, arXiv 2103.00020). LumbarCLIP (2025, arXiv 2509.20813) does not print its targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_DIAGONAL_MASS = 0.3
"""Below this mean mass of a pair's own text, targets no longer tell patients apart."""
LEAST_RANK = 2.0
"""Below this effective rank the embeddings have collapsed."""


class Targets(NamedTuple):
    """Soft targets of a batch; no gradient. With K earlier pairs from a queue, the rows have B + K columns."""

    images: Tensor
    """(B, B) q: row i is the target of image i over the texts."""
    texts: Tensor
    """(B, B) q': row j is the target of text j over the images."""


class Earlier(NamedTuple):
    """Embedded pairs of earlier batches, without gradient; further candidates in both directions."""

    images: Tensor
    """(K, D) of unit length."""
    texts: Tensor
    """(K, D) of unit length."""
    groups: Tensor
    """(K,) int64, equal for equal reports."""
    studies: Tensor
    """(K,) int64, equal for images of one knee at one visit."""


class SoftClip(NamedTuple):
    """The soft CLIP loss, and its least possible value."""

    loss: Tensor
    """Scalar, at least ``entropy``."""
    entropy: Tensor
    """Scalar: the mean entropy of the targets of both directions, so loss − entropy is a KL divergence."""


def soft_clip(
    images: Tensor, texts: Tensor, scale: Tensor | float, targets: Targets, earlier: Earlier | None = None
) -> SoftClip:
    """The loss of unit embeddings (B, D), (B, D) under soft targets; computed in float32 or better.

    With ``earlier`` pairs, each row's softmax runs over these, too; they have no rows of their own.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * _exact(images) @ _exact(texts).T
        rows, columns = logits, logits.T
        if earlier is not None:
            rows = torch.cat([rows, scale * _exact(images) @ _exact(earlier.texts).T], 1)
            columns = torch.cat([columns, scale * _exact(texts) @ _exact(earlier.images).T], 1)
        q, r = (target.to(logits.dtype) for target in targets)
        loss = -(q * rows.log_softmax(1)).sum(1).mean() - (r * columns.log_softmax(1)).sum(1).mean()
        entropy = torch.special.entr(q).sum(1).mean() + torch.special.entr(r).sum(1).mean()
        return SoftClip(loss / 2, entropy / 2)


def hard_targets(count: int, *, device: torch.device | str = "cpu") -> Targets:
    """The identity: every pair is its own class, so equal reports of two patients repel each other."""
    own = torch.eye(count, device=device)
    return Targets(own, own)


def self_targets(images: Tensor, texts: Tensor, scale: Tensor | float) -> Targets:
    """softmax(s (a aᵀ + b bᵀ) / 2), from unit embeddings (B, D) of the trained networks (as in copies of Keras' example).

    Where every a_i equals its b_i the gradient of the loss is exactly 0, even if all embeddings are one point. Kept for
    comparison with the paper, not as a default.
    """
    a, b = _exact(images.detach()), _exact(texts.detach())
    s = scale.detach() if isinstance(scale, Tensor) else scale
    q = (s * (a @ a.T + b @ b.T) / 2).softmax(1)
    return Targets(q, q)


def label_targets(grades: Tensor, *, temperature: float = 0.1) -> Targets:
    """softmax(y yᵀ / τ) with y the unit vector of the grade (MedCLIP, Wang et al. 2022); grades int64 (B,), −1 if unknown.

    A row without a grade has the hard target, and no mass goes to it from others.
    """
    known = grades >= 0
    same = (grades[:, None] == grades) & known
    q = (same.float() / temperature).masked_fill(~known, -torch.inf)
    own = torch.eye(len(grades), device=grades.device)
    q = torch.where(known[:, None], q.softmax(1).nan_to_num(0.0), own)
    return Targets(q, q)


def same_targets(texts: Tensor, studies: Tensor, earlier: Earlier | None = None) -> Targets:
    """Mass shared equally among equal reports, and among images of one patient and study: neither are negatives.

    Both int64 (B,): rows with the same number share; a negative number is shared with no other row. ``earlier`` pairs take
    part as further columns.
    """
    both = [(texts, texts), (studies, studies)]
    if earlier is not None:
        both = [(texts, torch.cat([texts, earlier.groups])), (studies, torch.cat([studies, earlier.studies]))]
    same = torch.eye(len(texts), len(both[0][1]), dtype=torch.bool, device=texts.device)
    for rows, columns in both:
        same = same | ((rows[:, None] == columns) & (columns >= 0))
    q = same.float()
    q = q / q.sum(1, keepdim=True)
    return Targets(q, q)


def teacher_targets(images: Tensor, texts: Tensor, scale: Tensor | float) -> Targets:
    """What the teacher's towers give: softmax over its own logits; unit embeddings (B, D) of the teacher."""
    with torch.autocast(images.device.type, enabled=False):
        logits = (scale * _exact(images) @ _exact(texts).T).detach()
        return Targets(logits.softmax(1), logits.T.softmax(1))


def mixed_targets(targets: Targets, weight: float) -> Targets:
    """``weight`` · identity + (1 − ``weight``) · targets; weight in [0, 1]."""
    own = torch.eye(*targets.images.shape, device=targets.images.device, dtype=targets.images.dtype)
    return Targets(*(weight * own + (1 - weight) * target for target in targets))


def diagonal_mass(targets: Targets) -> Tensor:
    """Scalar in (0, 1]: the mean mass of a pair's own text and own image."""
    return (targets.images.diagonal().mean() + targets.texts.diagonal().mean()) / 2


def effective_rank(embeddings: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); (B, D) → scalar in [1, min(B, D)].

    1 if all embeddings are multiples of one vector.
    """
    values = torch.linalg.svdvals(_exact(embeddings.detach()))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


def unit(embeddings: Tensor) -> Tensor:
    """(B, D) scaled to unit length, in float32 or better."""
    return F.normalize(_exact(embeddings), dim=1)


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
