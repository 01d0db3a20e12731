"""CLIP-KOA's network: grades an image by its similarity to the text of each grade (Jeong and Lee 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_koa.head import ImageFeatures, SimilarityScale, similarities, similarity_maps
from clip_koa.towers import GradeTexts, ImageTower, TextTower
from knee.nn.normalise import Normalise, normalised
from knee.nn.padding import cell_weights
from knee.task import Grading


class ClipGrader(nn.Module):
    """Image tower, text tower and similarity scale; a ``knee.task.Grader``.

    The logits are scale · cos(image, text of the grade). The class maps are the similarities of the patches
    (``clip_koa.head.similarity_maps``), so attention, its losses and overlays work as for a CNN. Unless ``detach_texts`` is
    false, texts and scale are detached in the maps, like classifier weights in attention losses: a loss on the map should
    change the attention of the image tower, not the definition of the grade.

    Images are normalised by ``knee.nn.normalise``: with "fixed" by ``mean`` and ``std`` (one value for all channels, or
    three), by default those with which the image tower's weights were trained. Both are buffers of three values, saved with
    the weights.
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
        return Grading(logits, maps * cell_weights(images, (maps.shape[2], maps.shape[3])))

    def embed(self, images: Tensor) -> ImageFeatures:
        """images (B, 1, H, W) in [0, 1] → embeddings; the gray channel is repeated three times."""
        return self.image_tower(normalised(images, self.mean, self.std, self.normalise).expand(-1, 3, -1, -1))

    def pooled(self, images: Tensor) -> Tensor:
        """images (B, 1, H, W) in [0, 1] → (B, D), of unit length."""
        return F.normalize(self.embed(images).pooled.float(), dim=1)

    def freeze_text(self) -> None:
        """Stop training the text tower and cache its embeddings, for prediction and export."""
        if isinstance(self.text_tower, GradeTexts):
            self.text_tower.freeze()


def _channels(values: Sequence[float]) -> Tensor:
    tensor = torch.tensor([float(value) for value in values])
    if len(tensor) not in (1, 3):
        raise ValueError(f"mean and std have one value or three, got {len(tensor)}")
    return tensor.expand(3)[:, None, None].clone()
