"""The joint model: towers for image, report and table, and a transformer over the tokens of all that are present.

Two spaces, told apart by type: ``embed_image``, ``embed_report`` and ``embed_table`` see one modality each and give embeddings
for retrieval; ``fuse`` sees all and gives grades and reconstructions, never an embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcmt.network import GradingNetwork
from image_text.joint.cells import CATEGORIES
from image_text.losses import unit
from image_text.pretrained_text import PretrainedText
from image_text.text import PAD
from image_text.towers import TextTower, TwoTowers, projection_head
from knee.nn.normalise import normalised

PATCH = 4
"""Side of a reconstructed patch, in averaged pixels."""


class Fused(NamedTuple):
    """What the joint transformer says of a case; no embedding."""

    logits: Tensor
    """(B, K) of the grades."""
    patches: Tensor
    """(B, h · w, PATCH²) reconstructed gray values of each position."""
    words: Tensor
    """(B, l, W) states of the report's tokens, for ``TextTower.guess``."""
    numbers: Tensor
    """(B, C) reconstructed standardised cells."""
    categories: Tensor
    """(B, C, CATEGORIES) logits of the cells."""
    further: tuple[Tensor, ...] = ()
    """(B, K) logits of each further grade set."""


class TableTower(nn.Module):
    """One token for each cell that is there: (x − μ)/σ · w + b for a number, an embedding for a category."""

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int, width: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.columns = columns
        self.weight = nn.Parameter(torch.randn(columns, width) * 0.1)
        self.bias = nn.Parameter(torch.randn(columns, width) * 0.1)
        self.values = nn.Embedding(max(columns, 1) * CATEGORIES, width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def standardised(self, numbers: Tensor) -> Tensor:
        """(B, C) → zero mean, unit deviation over the training patients, limited to ±5; NaN stays NaN."""
        return ((numbers - self.mean) / self.std).clamp(-5, 5)

    def forward(self, numbers: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (B, C) → tokens (B, C, W) and whether each is there (B, C)."""
        numeric, named = ~numbers.isnan(), categories >= 0
        values = self.standardised(numbers).nan_to_num(0.0)[..., None] * self.weight + self.bias
        offsets = torch.arange(self.columns, device=categories.device) * CATEGORIES
        embedded = self.values(categories.clamp_min(0) + offsets) + self.bias
        return torch.where(named[..., None], embedded, values), numeric | named

    def pooled(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Cells (B, C) → (B, W), h_S: the mean over the cells that are there."""
        tokens, there = self(numbers, categories)
        weights = there.to(tokens.dtype)[..., None]
        mixed: Tensor = (self.mix(tokens) * weights).sum(1) / weights.sum(1).clamp_min(1)
        return mixed


class JointModel(TwoTowers):
    """Towers of image, report and table, an image-only grader (``image``), and the joint transformer."""

    def __init__(
        self,
        image: GradingNetwork,
        text: TextTower | PretrainedText,
        table: TableTower,
        *,
        grid: tuple[int, int],
        layers: int,
        heads: int,
        embed_dim: int,
        head: str = "linear",
        scale: float = 14.3,
        train_image: bool = True,
        train_text: bool = True,
        further: tuple[int, ...] = (),
    ) -> None:
        super().__init__(
            image, text, embed_dim=embed_dim, head=head, scale=scale, train_image=train_image, train_text=train_text
        )
        width, grades = text.width, image.classifier.out_features
        self.image.classifier.requires_grad_(True)
        self.table, self.table_head = table, projection_head(head, width, embed_dim)
        self.see = nn.Linear(image.classifier.in_features, width)
        self.positions = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.modalities = nn.Parameter(torch.randn(4, width) * 0.02)
        self.hidden_cell = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.joint = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.grade = nn.Linear(width, grades)
        features = image.classifier.in_features
        self.further_image = nn.ModuleList([nn.Linear(features, count) for count in further])
        self.further_fused = nn.ModuleList([nn.Linear(width, count) for count in further])
        self.draw = nn.Linear(width, PATCH * PATCH)
        self.number = nn.Linear(width, 1)
        self.category = nn.Linear(width, CATEGORIES)

    def embed_table(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """z_S: cells (B, C) → (B, D) of unit length. It sees nothing but the table."""
        return unit(self.table_head(self.table.pooled(numbers, categories)))

    def image_grades(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """Pooled features (B, C) of images → (B, K) logits of the grades, and of each further grade set."""
        features = self.image.dropout(pooled)
        return self.image.classifier(features), *(head(features) for head in self.further_image)

    def maps(self, images: Tensor) -> Tensor:
        """images (B, 1, H, W) in [0, 1] → (B, C, h, w), the image encoder's features."""
        image = self.image
        with torch.set_grad_enabled(self.train_image and torch.is_grad_enabled()):
            return image.features(normalised(images, image.mean, image.std, image.normalise))

    def fuse(
        self,
        maps: Tensor,
        tokens: Tensor,
        numbers: Tensor,
        categories: Tensor,
        seen: Tensor,
        hidden: Tensor | None = None,
    ) -> Fused:
        """Features (B, C, h, w), tokens (B, L), cells (B, C) → grades and reconstructions.

        ``seen`` (B, 3) bool: whether image, report and table may be used; at least one. What is absent has no key in the
        attention. ``hidden`` (B, C) bool: cells whose value is hidden, though their presence is not.
        """
        states = self.text(tokens)
        cells, there = self.table(numbers, categories)
        if hidden is not None:
            cells = torch.where(hidden[..., None], self.hidden_cell + self.table.bias, cells)
        visual = self.see(maps.flatten(2).transpose(1, 2)) + self.positions
        parts = [visual.new_zeros(len(maps), 1, visual.shape[2]), visual, states, cells]
        sequence = torch.cat([part + kind for part, kind in zip(parts, self.modalities, strict=True)], 1)
        keys = [
            torch.ones(len(maps), 1, dtype=torch.bool, device=maps.device),
            seen[:, :1].expand(-1, visual.shape[1]),
            (tokens[:, : states.shape[1]] != PAD) & seen[:, 1:2],
            there & seen[:, 2:],
        ]
        out: Tensor = self.joint(sequence, src_key_padding_mask=~torch.cat(keys, 1))
        first, last = 1 + visual.shape[1], 1 + visual.shape[1] + states.shape[1]
        return Fused(
            logits=self.grade(out[:, 0]),
            patches=self.draw(out[:, 1:first]),
            words=out[:, first:last],
            numbers=self.number(out[:, last:])[..., 0],
            categories=self.category(out[:, last:]),
            further=tuple(head(out[:, 0]) for head in self.further_fused),
        )
