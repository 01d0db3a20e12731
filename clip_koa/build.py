"""A CLIP-KOA grader from a configuration: which towers, which prompts, which scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_koa.head import FIRST_SCALE, LARGEST_SCALE, ScaleKind, SimilarityScale
from clip_koa.model import ClipGrader
from clip_koa.open_clip_towers import ClipTowers, TextEncoder, clip_towers, small_text_encoder
from clip_koa.prompts import read_prompts
from clip_koa.timm_towers import timm_tower
from clip_koa.towers import FixedTexts, GradeTexts, ImageTower, TextTower
from knee.errors import UserError
from knee.grades import GradeSet

_TIMM = "timm:"


@dataclass(frozen=True)
class ClipConfig:
    """The network of CLIP-KOA."""

    image: str = "ViT-B-16-quickgelu"
    """Image tower: a model of open_clip, biomedclip, hf-hub:ORG/REPO, local-dir:FOLDER, or timm:BACKBONE."""
    text: str = "same"
    """Text tower: same (the image model's own), small (random, tiny), another of open_clip's models, or a file of
    embeddings of the grades (.npy, K rows)."""
    pretrained: bool | str = True
    """Weights of the image tower: true (the hub's), a tag of open_clip's, a local file or folder, or false (random)."""
    text_pretrained: bool | str = True
    """The same for the text tower where it is another model."""
    prompts: str = ""
    """Prompt set: a name (kl, cartilage) or the path of a YAML; empty: the one named as the grade set is."""
    train_image: bool = True
    """Train the image tower; a new projection is trained in any case."""
    train_text: bool = True
    """Train the text tower; a frozen one is run once."""
    embed_dim: int = 128
    """Dimensions of the shared space where no CLIP model says (timm image tower, small text tower)."""
    stride: int = 16
    """Input pixels per patch of a timm image tower; 0 keeps the backbone's own."""
    stage: int = -1
    """Which stage's feature map of a timm image tower; -1 is the last; later stages are cut off."""
    scale: ScaleKind = "learned"
    """The factor on the cosines: learned as CLIP's, fixed, or cosine (1, as the paper prints)."""
    scale_start: float | None = None
    """Where a learned scale starts, or the fixed one; empty: the pretrained model's, else 14.3."""
    detach_texts: bool = True
    """Texts and scale get no gradient through the class maps."""

    def __post_init__(self) -> None:
        if self.embed_dim < 2:
            raise ValueError(f"clip.embed_dim is {self.embed_dim}; it must be 2 or more")
        if self.stride < 0:
            raise ValueError(f"clip.stride is {self.stride}; it must be 0 or more")
        if self.scale_start is not None and not 0 < self.scale_start <= LARGEST_SCALE:
            raise ValueError(
                f"clip.scale_start is {self.scale_start}; it must be above 0 and at most {LARGEST_SCALE:g}"
            )
        if self.image.startswith(_TIMM) and self.text == "same":
            raise ValueError("clip.text is same, but a timm backbone has no text tower; write small, or a CLIP model")


def build_clip_grader(
    config: ClipConfig,
    grade_set: GradeSet,
    *,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ClipGrader:
    """The grader that ``config`` describes, for square images of ``image_size`` pixels.

    ``mean`` and ``std`` are the training set's; without them the image tower's own are taken.

    Raises:
        UserError: an unknown model or prompt set, weights that cannot be had or do not fit; Faults: a bad prompt file.
    """
    same = None if config.image.startswith(_TIMM) else _clip(config.image, config, image_size=image_size)
    texts, scale = _texts(config, grade_set, same)
    image: ImageTower
    if same is None:
        image = timm_tower(
            config.image.removeprefix(_TIMM),
            embed_dim=texts.embed_dim,
            image_size=image_size,
            stride=config.stride,
            stage=config.stage,
            pretrained=config.pretrained,
            trainable=config.train_image,
        )
    else:
        image = same.image
    if image.embed_dim != texts.embed_dim:
        raise UserError(
            f"clip.image {config.image} embeds in {image.embed_dim} dimensions, clip.text {config.text} in "
            f"{texts.embed_dim}; take towers that were trained together (clip.text: same), or a timm image tower"
        )
    start = config.scale_start if config.scale_start is not None else scale
    return ClipGrader(
        image,
        texts,
        SimilarityScale(config.scale, start=start),
        mean=mean,
        std=std,
        detach_texts=config.detach_texts,
    )


def read_text_embeddings(path: Path, count: int) -> Tensor:
    """Embeddings of the grades from a .npy file: (K, D) float32.

    Raises:
        UserError: not a file of numbers, or not one row of finite numbers a grade.
    """
    try:
        values = np.load(path, allow_pickle=False)
        embeddings = torch.as_tensor(np.asarray(values, dtype=np.float32))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(
            f"{path} is not a .npy file of numbers; save the embeddings of the grades by numpy.save"
        ) from error
    if embeddings.ndim != 2 or len(embeddings) != count or not embeddings.isfinite().all():
        shape = " × ".join(str(size) for size in embeddings.shape)
        raise UserError(f"{path} holds {shape} numbers; it must hold {count} rows of finite numbers, one a grade")
    return embeddings


def _clip(name: str, config: ClipConfig, *, image_size: int) -> ClipTowers:
    return clip_towers(name, image_size=image_size, pretrained=config.pretrained, trainable=config.train_image)


def _texts(config: ClipConfig, grade_set: GradeSet, same: ClipTowers | None) -> tuple[TextTower, float]:
    """The text tower, and the scale that belongs to it."""
    if config.text.endswith(".npy"):
        embeddings = read_text_embeddings(Path(config.text), grade_set.count)
        return FixedTexts(embeddings, trainable=config.train_text), same.scale if same else FIRST_SCALE
    scale = FIRST_SCALE
    encoder: TextEncoder
    if config.text == "same" and same is not None:
        encoder, scale = same.text, same.scale
    elif config.text == "small":
        encoder = small_text_encoder(same.image.embed_dim if same else config.embed_dim)
    else:
        other = clip_towers(
            config.text, image_size=224, pretrained=config.text_pretrained, option="clip.text_pretrained"
        )
        encoder = other.text
    prompts = read_prompts(config.prompts or grade_set.name, grade_set, tokenizer=encoder.tokenizer)
    phrases, grades = prompts.flat
    tokens = encoder.tokenizer(phrases)
    return (
        GradeTexts(encoder.encoder, tokens, grades, embed_dim=encoder.embed_dim, trainable=config.train_text),
        scale,
    )
