"""The two towers: each embeds one modality, so nothing of a report can reach the embedding of an image.

The image encoder is the network of the graders (``dcmt.network.GradingNetwork``), so a grader can start from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from dcmt.network import GradingNetwork
from image_text.losses import unit
from image_text.pretrained_text import PretrainedText
from image_text.text import FIRST_WORD, PAD


class TextTower(nn.Module):
    """A small transformer (pre-norm) over hashed words; the state of START is the report's. Random weights."""

    def __init__(self, *, buckets: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.words = nn.Embedding(FIRST_WORD + buckets, width, padding_idx=PAD)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → states (B, l, W), l ≤ L: the batch is cut at its longest report."""
        used = max(int((tokens != PAD).sum(1).max()), 1)
        tokens = tokens[:, :used]
        padding = tokens == PAD
        # A row without a report must attend to something; its state is not used.
        padding = padding & (torch.arange(used, device=tokens.device) > 0)
        states: Tensor = self.body(self.words(tokens) + self.places[:used], src_key_padding_mask=padding)
        return states

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → (B, W), h_T."""
        states: Tensor = self(tokens)
        return states[:, 0]

    def guess(self, states: Tensor) -> Tensor:
        """States (n, W) of tokens → (n, V) logits of the words; for all tokens of a batch they would be large."""
        return states @ self.words.weight.T


def projection_head(kind: str, features: int, embed_dim: int) -> nn.Module:
    """(B, C) → (B, D) without bias: "linear" W h, or "nonlinear" W₂ GELU(W₁ h)."""
    if kind == "linear":
        return nn.Linear(features, embed_dim, bias=False)
    inner = nn.Linear(features, embed_dim, bias=False)
    return nn.Sequential(inner, nn.GELU(), nn.Linear(embed_dim, embed_dim, bias=False))


class TwoTowers(nn.Module):
    """Image encoder, text encoder, a head for each, and the scale of the similarities (as its logarithm)."""

    def __init__(
        self,
        image: GradingNetwork,
        text: TextTower | PretrainedText,
        *,
        embed_dim: int,
        head: str = "linear",
        scale: float = 14.3,
        train_image: bool = True,
        train_text: bool = True,
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.image_head = projection_head(head, image.classifier.in_features, embed_dim)
        self.text_head = projection_head(head, text.width, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.train_image, self.train_text = train_image, train_text
        self.image.classifier.requires_grad_(False)  # it has no loss here: a grader trains its own
        for trained, encoder in ((train_image, image), (train_text, text)):
            if not trained:
                encoder.requires_grad_(False)
        self.train()

    def embed_image(self, images: Tensor) -> Tensor:
        """z_I: images (B, 1, H, W) in [0, 1] → (B, D) of unit length, float32. It sees nothing but the images."""
        with torch.set_grad_enabled(self.train_image and torch.is_grad_enabled()):
            features = self.image.pooled(images)
        return unit(self.image_head(features))

    def embed_report(self, tokens: Tensor) -> Tensor:
        """z_T: tokens (B, L) int64 → (B, D) of unit length, float32. It sees nothing but the reports."""
        with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
            states = self.text.pooled(tokens)
        return unit(self.text_head(states))

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_I, z_T (B, D) and the scale."""
        return self.embed_image(images), self.embed_report(tokens), self.log_scale.exp()

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in eval mode."""
        super().train(mode)
        self.image.train(mode and self.train_image)
        self.text.train(mode and self.train_text)
        return self

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Parameters without weight decay: decay of the log scale would pull the temperature towards 1."""
        return [self.log_scale]
