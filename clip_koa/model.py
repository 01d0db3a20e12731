"""CLIP-KOA's network: a grader that matches an image to the text of each grade (Jeong and Lee 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clip_koa.head import ImageFeatures, SimilarityScale, similarities, similarity_maps
from clip_koa.towers import GradeTexts, ImageTower, TextTower
from knee.nn.normalise import Normalise, normalised
from knee.task import Grading


class ClipGrader(nn.Module):
    """Image tower, text tower and scale; a ``knee.task.Grader``.

    The logits are scale · cos(image, text of the grade). The class maps are the similarities of the patches
    (``clip_koa.head.similarity_maps``), so that attention, its losses and overlays work as for a CNN. In the maps the
    texts and the scale are detached unless ``detach_texts`` is false, as classifier weights are in attention losses:
    the map is to be moved by moving where the image tower looks, not by redefining the grade.

    Images are normalised by ``knee.nn.normalise``: with "fixed" by ``mean`` and ``std`` (one value for all channels, or
    three), without them by the image tower's own, those its weights were trained with. They are buffers of three values
    and travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_tower: ImageTower,
        text_tower: TextTower,
        scale: SimilarityScale,
        *,
        normalise: Normalise = "fixed",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        detach_texts: bool = True,
        against_mean: bool = True,
    ) -> None:
        super().__init__()
        if image_tower.embed_dim != text_tower.embed_dim:
            raise ValueError(f"image tower of {image_tower.embed_dim} dimensions, text tower of {text_tower.embed_dim}")
        self.image_tower, self.text_tower, self.scale = image_tower, text_tower, scale
        self.detach_texts, self.against_mean = detach_texts, against_mean
        self.normalise: Normalise = normalise
        self.register_buffer("mean", _channels(image_tower.pixel_mean if mean is None else mean))
        self.register_buffer("std", _channels(image_tower.pixel_std if std is None else std))

    def forward(self, images: Tensor) -> Grading:
        """images (B, 1, H, W) in [0, 1] → logits (B, K) and class maps (B, K, h, w), both float32."""
        features, texts, scale = self.embed(images), self.text_tower(), self.scale()
        logits = similarities(features.pooled, texts, scale)
        if self.detach_texts:
            texts, scale = texts.detach(), scale.detach()
        maps = similarity_maps(
            features,
            texts,
            scale,
            pooled_is_mean=self.image_tower.pooled_is_mean,
            against_mean=self.against_mean,
        )
        return Grading(logits, maps)

    def embed(self, images: Tensor) -> ImageFeatures:
        """images (B, 1, H, W) in [0, 1] → embeddings; the grey channel is given three times."""
        return self.image_tower(normalised(images, self.mean, self.std, self.normalise).expand(-1, 3, -1, -1))

    def freeze_text(self) -> None:
        """Embed the texts once more and keep that, for prediction and export."""
        if isinstance(self.text_tower, GradeTexts):
            self.text_tower.freeze()


def _channels(values: Sequence[float]) -> Tensor:
    tensor = torch.tensor([float(value) for value in values])
    if len(tensor) not in (1, 3):
        raise ValueError(f"mean and std have one value or three, got {len(tensor)}")
    return tensor.expand(3)[:, None, None].clone()
