"""Image towers and text towers, which embed images and phrases in a shared space.

An image tower maps normalised pixels (B, 3, H, W) to ``ImageFeatures``. A text tower has no input and returns (K, D) unit
vectors, one for each grade. A frozen tower gets no gradient and stays in eval mode, so that batch statistics and dropout do
not change its output; a frozen text tower is evaluated only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_koa.head import ImageFeatures


class ImageTower(Protocol):
    """The interface of an image tower for ``ClipGrader``; the towers are also modules."""

    embed_dim: int
    """D."""
    pooled_is_mean: bool
    """Whether the image's embedding is the mean of its patches' embeddings (see ``clip_koa.head.similarity_maps``)."""
    pixel_mean: tuple[float, ...]
    """Mean of the pixels in the training of its weights, in [0, 1]; one or three values."""
    pixel_std: tuple[float, ...]
    """Their standard deviation."""

    def __call__(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) normalised."""
        ...


class TextTower(Protocol):
    """The interface of a text tower for ``ClipGrader``; the towers are also modules."""

    count: int
    """K."""
    embed_dim: int
    """D."""

    def __call__(self) -> Tensor:
        """(K, D) float32, rows of unit length."""
        ...


class ClipVitTower(nn.Module):
    """CLIP's own vision transformer, as open_clip builds it: class token and patch tokens, both projected."""

    def __init__(
        self, visual: Any, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], trainable: bool = True
    ) -> None:
        super().__init__()
        visual.output_tokens = True
        self.visual = visual
        self.embed_dim = int(visual.output_dim)
        self.pooled_is_mean = visual.pool_type == "avg" and not visual.final_ln_after_pool
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.trainable = trainable
        self.requires_grad_(trainable)
        self.train()

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) → (B, D) and (B, D, h, w); H and W must match the position embeddings."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            pooled, tokens = self.visual(pixels)
            if self.visual.final_ln_after_pool:
                tokens = self.visual.ln_post(tokens)
            return ImageFeatures(pooled, _as_grid(tokens @ self.visual.proj, self.visual.grid_size))

    def train(self, mode: bool = True) -> Self:
        """A frozen tower stays in eval mode."""
        return super().train(mode and self.trainable)


class TimmTokenTower(nn.Module):
    """A timm vision transformer and a projection: timm's pooling gives the image's embedding, its tokens those of patches.

    ``trainable`` applies to the pretrained parts. A new projection is always trained, since a fixed random projection would
    only degrade the features of a frozen body.
    """

    pooled_is_mean = False

    def __init__(
        self,
        body: Any,
        projection: nn.Module,
        *,
        embed_dim: int,
        new_projection: bool = True,
        trainable: bool = True,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.body, self.projection = body, projection
        self.embed_dim = embed_dim
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.trainable, self.new_projection = trainable, new_projection
        self.body.requires_grad_(trainable)
        self.projection.requires_grad_(trainable or new_projection)
        self.train()

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) → (B, D) and (B, D, h, w)."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            tokens = self.body.forward_features(pixels)
            pooled = self.body.forward_head(tokens)
            # If timm normalises after pooling, apply the same normalisation to the patches.
            patches = self.body.fc_norm(tokens[:, self.body.num_prefix_tokens :])
        grid = self.body.patch_embed.grid_size
        return ImageFeatures(self.projection(pooled), _as_grid(self.projection(patches), grid))

    def train(self, mode: bool = True) -> Self:
        """A frozen body stays in eval mode."""
        super().train(mode)
        self.body.train(mode and self.trainable)
        self.projection.train(mode and (self.trainable or self.new_projection))
        return self


class TimmMapTower(nn.Module):
    """A timm network with a feature map (ResNet, SE-ResNeXt, ConvNeXt, Swin): the projected map, and its mean.

    The projection has no bias, so the image's embedding is the mean of the patches' embeddings, and the class maps decompose
    the logits exactly. ``stage`` is the stage of the feature map in timm's numbering. The body may be frozen; the projection is
    new and always trained.
    """

    pooled_is_mean = True

    def __init__(
        self,
        body: Any,
        *,
        features: int,
        embed_dim: int,
        stage: int = -1,
        trainable: bool = True,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.body = body
        self.projection = nn.Linear(features, embed_dim, bias=False)
        self.embed_dim, self.stage = embed_dim, stage
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.trainable = trainable
        self.body.requires_grad_(trainable)
        self.train()

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) → (B, D) and (B, D, h, w)."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            maps = self.body.forward_intermediates(pixels, indices=[self.stage], norm=True, intermediates_only=True)[0]
        patches = F.conv2d(maps, self.projection.weight[:, :, None, None])
        return ImageFeatures(patches.mean((2, 3)), patches)

    def train(self, mode: bool = True) -> Self:
        """A frozen body stays in eval mode."""
        super().train(mode)
        self.body.train(mode and self.trainable)
        return self


class GradeTexts(nn.Module):
    """A text encoder and the tokens of every grade's phrases: the embedding of each grade.

    ``encoder`` maps (P, L) int64 tokens to (P, D). The phrases of a grade are embedded, scaled to unit length, averaged and
    scaled again, like CLIP's prompt ensembles. Tokens are saved and loaded with the weights, for any number of phrases, so
    that a trained grader keeps its phrases even if the prompt file changes.

    A frozen tower is evaluated at the first forward pass, in full precision, and again only after weights are loaded.
    """

    tokens: Tensor
    membership: Tensor

    def __init__(
        self, encoder: nn.Module, tokens: Tensor, grades: Sequence[int], *, embed_dim: int, trainable: bool = True
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.count, self.embed_dim, self.trainable = max(grades) + 1, embed_dim, trainable
        self.register_buffer("tokens", tokens)
        self.register_buffer("membership", F.one_hot(torch.tensor(grades, device="cpu")).T.float())
        # Not a buffer, because code that copies, averages or restores buffers would restore the state before the first pass.
        self._kept: Tensor | None = None
        self.encoder.requires_grad_(trainable)
        self.register_load_state_dict_pre_hook(self._make_room)  # type: ignore[no-untyped-call]
        for module in (self, self.encoder):
            module.register_load_state_dict_post_hook(self._forget)  # type: ignore[no-untyped-call]
        self.train()

    @property
    def is_current(self) -> bool:
        """Whether the embeddings of a frozen tower are cached."""
        return self._kept is not None

    def forward(self) -> Tensor:
        """(K, D) float32, rows of unit length."""
        if self.trainable:
            return self._embed()
        if self._kept is None or self._kept.device != self.tokens.device:
            # The cached embeddings must not depend on the precision and mode of the first pass.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.tokens.device.type, enabled=False):
                self._kept = self._embed()
        return self._kept

    def freeze(self) -> None:
        """Stop training and recompute the cached embeddings, for prediction and export, where the text never changes."""
        self.trainable, self._kept = False, None
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True) -> Self:
        """A frozen tower stays in eval mode."""
        return super().train(mode and self.trainable)

    def _embed(self) -> Tensor:
        phrases = self.encoder(self.tokens)
        with torch.autocast(phrases.device.type, enabled=False):
            # This sums the embeddings of a grade's phrases; normalising makes it equivalent to their mean.
            return F.normalize(self.membership.float() @ F.normalize(phrases.float(), dim=1), dim=1)

    def _make_room(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        tokens, membership = state.get(f"{prefix}tokens"), state.get(f"{prefix}membership")
        if tokens is None or membership is None:
            return
        # The number of phrases may differ, but not the context length or the number of grades: that is another network.
        if tokens.shape[1:] == self.tokens.shape[1:] and membership.shape == (self.count, len(tokens)):
            self.tokens = torch.empty_like(tokens, device=self.tokens.device)
            self.membership = torch.empty_like(membership, device=self.tokens.device)

    def _forget(self, module: nn.Module, keys: object) -> None:
        self._kept = None


class FixedTexts(nn.Module):
    """Precomputed embeddings of the grades (K, D), fixed or used as the start of training."""

    def __init__(self, embeddings: Tensor, *, trainable: bool = False) -> None:
        super().__init__()
        self.count, self.embed_dim = embeddings.shape
        self.embeddings = nn.Parameter(embeddings.float().clone(), requires_grad=trainable)

    def forward(self) -> Tensor:
        """(K, D) float32, rows of unit length."""
        return F.normalize(self.embeddings.float(), dim=1)


def _as_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h · w, D) → (B, D, h, w)."""
    rows, columns = grid
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], rows, columns)
