"""CLIP-KOA's flip terms for any grader (Jeong and Lee 2025, Eq. 4): compare predictions of images and horizontal flips."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clip_koa.losses import flip_consistency, symmetry_loss
from knee.nn.flips import with_flipped
from knee.task import Grader, Grading


def grade_with_flips(
    grader: Grader, images: Tensor, *, labeled: int, symmetry: bool, consistency: bool
) -> tuple[Grading, Tensor | None]:
    """The gradings of all images (B, 1, H, W), and the logits of the flips that the flip terms need, labeled first.

    Uses one forward pass. The consistency term needs the flips of all images, the symmetry term those of the labeled ones;
    with neither, nothing is flipped and the second value is None.
    """
    if not (symmetry or consistency):
        return grader(images), None
    grading, flipped = with_flipped(grader, images, count=len(images) if consistency else labeled)
    return grading, flipped.logits


def grade_and_flip_terms(
    logits: Tensor, flipped: Tensor | None, grades: Tensor, *, symmetry: bool, consistency: bool
) -> dict[str, Tensor]:
    """L_c and, with flips, the terms of CLIP-KOA's Eq. 4, by name.

    logits (B, K), flipped (L or B, K) or None, grades (L,). ``grade`` is the cross-entropy of the labeled images, with
    ``symmetry`` ½ (CE + CE^H). With ``consistency`` the divergences of labeled and unlabeled images are separate terms, since
    only the second is multiplied by the ramp-up.
    """
    labeled = len(grades)
    if flipped is None:
        return {"grade": F.cross_entropy(logits[:labeled].float(), grades)}
    pair = logits[:labeled], flipped[:labeled]
    terms = {"grade": symmetry_loss(*pair, grades) if symmetry else F.cross_entropy(pair[0].float(), grades)}
    if consistency:
        terms["flip_consistency"] = flip_consistency(*pair)
        if len(logits) > labeled:
            terms["flip_consistency_unlabeled"] = flip_consistency(logits[labeled:], flipped[labeled:])
    return terms


def changed_share(logits: Tensor, flipped: Tensor) -> Tensor:
    """The share of images whose horizontal flip gets another grade; both (B, K) → scalar in [0, 1]."""
    return (logits.detach().argmax(1) != flipped.detach().argmax(1)).float().mean()
