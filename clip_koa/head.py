"""Similarity of images and grade texts: the logits, and a map of it over the patches of the image.

s_ij = scale · cos(x_i, t_j) (Jeong and Lee 2025, section 2.1). The paper prints no scale; a softmax of plain cosines
over five grades is almost flat, so the scale is learned by default, as CLIP's is (Radford et al. 2021, section 2.3.2),
starting at 1/0.07 or at the pretrained model's and held at 100 at most. Everything here runs in float32, outside
autocast: at a scale of 100 half precision would round the logits to steps of 0.05, and an unclamped scale would
overflow it.
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
    """What an image tower makes of a batch: embeddings in the space shared with the texts, not yet of unit length."""

    pooled: Tensor
    """(B, D), one embedding an image."""
    patches: Tensor
    """(B, D, h, w), one embedding a patch."""


class SimilarityScale(nn.Module):
    """The factor on the cosines: ``learned`` from ``start`` on, ``fixed`` at it, or ``cosine``: 1, as the paper prints.

    Raises:
        UserError: an unknown kind, or a start outside (0, 100].
    """

    def __init__(self, kind: ScaleKind = "learned", *, start: float = FIRST_SCALE) -> None:
        super().__init__()
        if kind not in get_args(ScaleKind):
            raise UserError(f"similarity scale '{kind}' is unknown; write one of {', '.join(get_args(ScaleKind))}")
        if not 0 < start <= LARGEST_SCALE:
            raise UserError(
                f"similarity scale {start:g} is outside (0, {LARGEST_SCALE:g}]; CLIP starts at 14.3 and stops at 100"
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
            # Bring the parameter itself back, as CLIP does: past the bound it would get no gradient, and stay there.
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
    """How much each patch resembles each grade's text: (B, D), (B, D, h, w); (K, D), scalar → (B, K, h, w) float32.

    Where the image's embedding is the mean of its patches' (``pooled_is_mean``), the map is the exact decomposition of
    the similarity, scale · ⟨patch, t⟩ / ‖pooled‖, whose mean over the patches is the logit: a class activation map. A
    patch of small norm, such as background, then counts little. Where a class token is the image's embedding (CLIP's
    ViT), no such decomposition exists, and the map is scale · cos(patch, t).

    ``against_mean`` takes the mean over the grades from the map at each patch. CLIP's embeddings lie in a narrow cone:
    the cosines with all the texts are alike and of one sign, so that a rectified map would show everything or nothing.
    What is left says for which grade a patch speaks, and against which. It changes no probability: the same number is
    taken from every grade (the mean over the patches becomes the logits less their mean).

    The gradient does not reach ``texts`` and ``scale`` if the caller detaches them.
    """
    with torch.autocast(texts.device.type, enabled=False):
        directions = F.normalize(texts.float(), dim=1)
        if against_mean:
            directions = directions - directions.mean(0)
        patches = features.patches.float()
        # Detached: it is one positive number an image, which the attention map's scaling to [0, 1] divides out.
        length = features.pooled.detach().float().norm(dim=1)[:, None, None, None]
        patches = patches / length.clamp_min(1e-12) if pooled_is_mean else F.normalize(patches, dim=1)
        return scale * torch.einsum("bdhw,kd->bkhw", patches, directions)
