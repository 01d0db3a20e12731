"""Similarity of images and grade texts: logits, and similarity maps over the patches of the image.

s_ij = scale · cos(x_i, t_j) (Jeong and Lee 2025, section 2.1). The paper prints no scale, but a softmax of plain cosines
over five grades is almost flat. By default the scale is therefore learned as in CLIP (Radford et al. 2021, section 2.3.2),
starting at 1/0.07 or at that of the pretrained model, with a maximum of 100. Everything here runs in float32, outside
autocast: at a scale of 100 half precision would round the logits to steps of 0.05, and an unclamped scale would overflow.
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_koa.config import LARGEST_SCALE, ScaleKind
from knee.errors import UserError

FIRST_SCALE = 1 / 0.07
_LARGEST_LOG_SCALE = math.log(LARGEST_SCALE)


class ImageFeatures(NamedTuple):
    """The output of an image tower: embeddings in the space shared with the texts, not normalised to unit length."""

    pooled: Tensor
    """(B, D), one embedding per image."""
    patches: Tensor
    """(B, D, h, w), one embedding per patch."""


class SimilarityScale(nn.Module):
    """The factor of the cosine similarities: ``learned`` from ``start``, ``fixed`` at ``start``, or ``cosine``: 1, as printed.

    Raises:
        UserError: an unknown kind, or a start outside (0, 100].
    """

    def __init__(self, kind: ScaleKind = "learned", *, start: float = FIRST_SCALE) -> None:
        super().__init__()
        if kind not in get_args(ScaleKind):
            raise UserError(f"similarity scale '{kind}' is unknown; write one of {', '.join(get_args(ScaleKind))}")
        if not 0 < start <= LARGEST_SCALE:
            raise UserError(
                f"similarity scale {start:g} is outside (0, {LARGEST_SCALE:g}]; CLIP starts at 14.3 and uses at most 100"
            )
        log_scale = torch.tensor(0.0 if kind == "cosine" else math.log(start))
        self.kind = kind
        if kind == "learned":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        """The scale, a float32 scalar in (0, 100]."""
        if self.training and self.kind == "learned":
            # Clamp the parameter itself, as CLIP does: beyond the bound it would get no gradient and could not return.
            with torch.no_grad():
                self.log_scale.clamp_(max=_LARGEST_LOG_SCALE)
        return self.log_scale.float().clamp(max=_LARGEST_LOG_SCALE).exp()


def similarities(embeddings: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """scale · cos(x_i, t_j): (B, D), (K, D), scalar → (B, K) float32 in [−scale, scale]."""
    with torch.autocast(embeddings.device.type, enabled=False):
        images = F.normalize(embeddings.float(), dim=1)
        return scale * images @ F.normalize(texts.float(), dim=1).T


def similarity_maps(
    features: ImageFeatures, texts: Tensor, scale: Tensor, *, pooled_is_mean: bool, against_mean: bool = True
) -> Tensor:
    """Similarity of each patch to each grade's text: (B, D), (B, D, h, w); (K, D), scalar → (B, K, h, w) float32.

    If the image's embedding is the mean of its patches' embeddings (``pooled_is_mean``), the map is the exact decomposition
    of the similarity, scale · ⟨patch, t⟩ / ‖pooled‖, whose mean over the patches is the logit: a class activation map.
    Patches of small norm, such as background, then have little weight. If a class token is the image's embedding (CLIP's
    ViT), there is no such decomposition, and the map is scale · cos(patch, t).

    ``against_mean`` subtracts the mean over the grades from the map at each patch. CLIP's embeddings are in a narrow cone:
    the cosines with all texts are similar and have the same sign, so a rectified map would be positive everywhere or nowhere.
    The difference shows for which grades a patch is evidence, and against which. Probabilities do not change, since the same
    value is subtracted for every grade (the mean over the patches is then the logits minus their mean).

    No gradient reaches ``texts`` and ``scale`` if the caller detaches them.
    """
    with torch.autocast(texts.device.type, enabled=False):
        directions = F.normalize(texts.float(), dim=1)
        if against_mean:
            directions = directions - directions.mean(0)
        patches = features.patches.float()
        # Detached: one positive number per image, which cancels when the attention map is scaled to [0, 1].
        length = features.pooled.detach().float().norm(dim=1)[:, None, None, None]
        patches = patches / length.clamp_min(1e-12) if pooled_is_mean else F.normalize(patches, dim=1)
        return scale * torch.einsum("bdhw,kd->bkhw", patches, directions)
