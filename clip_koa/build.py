"""Build a CLIP-KOA grader from a configuration of towers, prompts and scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_koa.config import TIMM, ClipConfig
from clip_koa.head import FIRST_SCALE, SimilarityScale
from clip_koa.model import ClipGrader
from clip_koa.open_clip_towers import ClipTowers, TextEncoder, clip_towers, external_source, small_text_encoder
from clip_koa.prompts import read_prompts
from clip_koa.timm_towers import timm_tower
from clip_koa.towers import FixedTexts, GradeTexts, ImageTower, TextTower
from knee.engine.config import EXTERNAL
from knee.errors import UserError
from knee.grades import GradeSet
from knee.io.plain import read_array, shown
from knee.nn.normalise import Normalise


def build_clip_grader(
    config: ClipConfig,
    grade_set: GradeSet,
    *,
    image_size: int,
    normalise: Normalise = "fixed",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    detach_texts: bool = True,
    fresh: bool = True,
) -> ClipGrader:
    """The grader that ``config`` describes, for square images of ``image_size`` pixels.

    ``mean`` and ``std`` are those of the training set; without them the image tower's own are used. ``fresh`` false builds the
    network to be filled from a checkpoint: weights and prompts are not read, since the checkpoint contains both. Embeddings in
    a file are read in both cases, for their width.

    Raises:
        UserError: an unknown model or prompt set, weights that cannot be loaded or do not fit; Faults: a bad prompt file.
    """
    same = None if config.image.startswith(TIMM) else _clip(config, image_size=image_size, fresh=fresh)
    texts, scale = _texts(config, grade_set, same, fresh=fresh)
    image: ImageTower
    if same is None:
        image = timm_tower(
            config.image.removeprefix(TIMM),
            embed_dim=texts.embed_dim,
            image_size=image_size,
            stride=config.stride,
            stage=config.stage,
            pretrained=config.pretrained if fresh else False,
            trainable=config.train_image,
        )
    else:
        image = same.image
    if image.embed_dim != texts.embed_dim:
        raise UserError(
            f"clip.image {config.image} embeds in {image.embed_dim} dimensions, clip.text {config.text} in "
            f"{texts.embed_dim}; use towers that were trained together (clip.text: same), or a timm image tower"
        )
    start = config.scale_start if config.scale_start is not None else scale
    return ClipGrader(
        image,
        texts,
        SimilarityScale(config.scale, start=start),
        normalise=normalise,
        mean=mean,
        std=std,
        detach_texts=detach_texts,
    )


def refuse_external_models(config: ClipConfig, *, fresh: bool = False) -> None:
    """Raises UserError if a tower needs more than the installed packages, which a run folder must not load by itself.

    With ``fresh`` also if its weights would be downloaded.
    """
    towers = [("image", config.image, config.pretrained)]
    if config.text not in ("same", "small") and not config.text.endswith(".npy"):
        towers.append(("text", config.text, config.text_pretrained))
    for tower, name, pretrained in towers:
        source = "" if name.startswith(TIMM) else external_source(name, fresh=fresh)
        if not source and fresh and pretrained and not (isinstance(pretrained, str) and Path(pretrained).exists()):
            source = "its weights from the model hub"
        if source:
            raise UserError(
                f"clip.{tower} of the run is {shown(name)}, which needs {source}; run folders are opened without downloads and "
                f"without external code; if you trust the source of the run and of that model, add {EXTERNAL}"
            )


def read_text_embeddings(path: Path, count: int) -> Tensor:
    """Embeddings of the grades from a .npy file: (K, D) float32.

    Raises:
        UserError: not a file of numbers, or not one row of finite numbers for each grade.
    """
    if not path.is_file():
        raise UserError(
            f"clip.text: there is no file {path}; check the path (a run trained with this file also needs it later)"
        )
    try:
        embeddings = torch.as_tensor(np.asarray(read_array(path), dtype=np.float32), device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a .npy file of numbers; save the embeddings of the grades with numpy.save"
        ) from error
    if embeddings.ndim != 2 or len(embeddings) != count or not embeddings.isfinite().all():
        shape = " × ".join(str(size) for size in embeddings.shape)
        raise UserError(
            f"{path} contains {shape} numbers; it must contain {count} rows of finite numbers, one per grade"
        )
    return embeddings


def _clip(config: ClipConfig, *, image_size: int, fresh: bool) -> ClipTowers:
    return clip_towers(
        config.image, image_size=image_size, pretrained=config.pretrained, trainable=config.train_image, fresh=fresh
    )


def _texts(config: ClipConfig, grade_set: GradeSet, same: ClipTowers | None, *, fresh: bool) -> tuple[TextTower, float]:
    """The text tower and its similarity scale."""
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
            config.text,
            image_size=224,
            pretrained=config.text_pretrained,
            option="clip.text_pretrained",
            fresh=fresh,
        )
        encoder = other.text
    if fresh:
        tokens, grades = _tokens(config, grade_set, encoder)
    else:
        tokens, grades = torch.zeros(grade_set.count, encoder.tokenizer.context_length).long(), range(grade_set.count)
    return GradeTexts(encoder.encoder, tokens, grades, embed_dim=encoder.embed_dim, trainable=config.train_text), scale


def _tokens(config: ClipConfig, grade_set: GradeSet, encoder: TextEncoder) -> tuple[Tensor, Sequence[int]]:
    """All phrases as tokens (P, L) int64, and the grade of each."""
    prompts = read_prompts(config.prompts or grade_set.name, grade_set, tokenizer=encoder.tokenizer)
    phrases, grades = prompts.flat
    return encoder.tokenizer(phrases), grades
