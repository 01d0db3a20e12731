"""The towers of open_clip models by name, including BiomedCLIP, and a small text tower.

``pretrained`` is true (weights from the hub), an open_clip tag, a local file or folder, or false (random weights).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor, nn

from clip_koa.config import LARGEST_SCALE
from clip_koa.head import FIRST_SCALE
from clip_koa.prompts import Tokenizer
from clip_koa.towers import ClipVitTower, ImageTower, TimmTokenTower
from knee.errors import UserError
from knee.nn.weights import misfit, near_names, no_download, no_retries_offline

BIOMEDCLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_HUB, _FOLDER = "hf-hub:", "local-dir:"
_TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language", "tokenizer_mode")


@dataclass(frozen=True)
class TextEncoder:
    """A text tower without phrases: ``encoder`` maps (P, L) int64 to (P, D)."""

    encoder: nn.Module
    tokenizer: Tokenizer
    embed_dim: int


@dataclass(frozen=True)
class ClipTowers:
    """Both towers of a CLIP model, and its trained similarity scale."""

    image: ImageTower
    text: TextEncoder
    scale: float


def clip_towers(
    name: str,
    *,
    image_size: int,
    pretrained: bool | str = True,
    trainable: bool = True,
    option: str = "clip.pretrained",
    fresh: bool = True,
) -> ClipTowers:
    """The towers of open_clip's model ``name``, for square images of ``image_size``.

    ``name`` is an open_clip model, ``biomedclip``, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``. Position embeddings are
    interpolated if the size differs from that of the weights. ``option`` is the name of ``pretrained`` in messages.
    ``fresh`` false builds the network that the weights of ``pretrained`` fit, without reading them.

    Raises:
        UserError: an unknown name (with similar ones), no patches to map, weights that cannot be loaded or do not fit.
    """
    name = BIOMEDCLIP if name.lower() == "biomedclip" else name
    if name == BIOMEDCLIP:
        _require_transformers(name)
    config, pixels = _clip_config(name)
    _check_supported(name, config, fresh=fresh)
    path, tag = _clip_weights(name, pretrained, option, fresh=fresh)
    pixels = {**pixels, **tag}
    config["vision_cfg"]["image_size"] = image_size
    if tag:
        # The activation is not stored in the weights; with the wrong one they load but give meaningless embeddings.
        config["quick_gelu"] = bool(tag.get("quick_gelu", False))
    model = _build_clip(name, config)
    if path:
        try:
            open_clip.load_checkpoint(model, str(path))
        except Exception as error:
            raise misfit(path, name, error) from error
    tower = _clip_image_tower(
        model.visual,
        embed_dim=config["embed_dim"],
        image_size=image_size,
        trainable=trainable,
        pixel_mean=pixels.get("mean", open_clip.OPENAI_DATASET_MEAN),
        pixel_std=pixels.get("std", open_clip.OPENAI_DATASET_STD),
    )
    scale = min(float(model.logit_scale.detach().exp()), LARGEST_SCALE) if path else FIRST_SCALE
    tokenizer = _tokenizer(name, config) if fresh else _NoTokenizer(int(config["text_cfg"].get("context_length", 77)))
    return ClipTowers(tower, TextEncoder(model.text, tokenizer, config["embed_dim"]), scale)


def small_text_encoder(embed_dim: int, *, width: int = 64, layers: int = 2, heads: int = 2) -> TextEncoder:
    """A tiny text transformer with random weights and CLIP's tokenizer, whose vocabulary needs no download."""
    tokenizer = SimpleTokenizer()
    encoder = open_clip.transformer.TextTransformer(
        context_length=tokenizer.context_length,
        vocab_size=tokenizer.vocab_size,
        width=width,
        heads=heads,
        layers=layers,
        output_dim=embed_dim,
    )
    return TextEncoder(encoder, tokenizer, embed_dim)


def supported_clip_models() -> list[str]:
    """The names of open_clip's own models that have patches to map."""
    return [name for name in open_clip.list_models() if _why_unsupported(open_clip.get_model_config(name)) is None]


def external_source(name: str, *, fresh: bool) -> str:
    """What the model ``name`` needs, apart from its weights, from a hub or a folder; empty if nothing.

    ``fresh`` as in ``clip_towers``: only a network that is not filled from a checkpoint needs a tokenizer.
    """
    if name.lower() == "biomedclip" or name.startswith(_HUB):
        return "a description from the model hub"
    if name.startswith(_FOLDER):
        return "a description from a folder outside the run"
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if text.get("hf_model_name"):
        return "the description of its text tower from the model hub"
    return "its tokenizer from the model hub" if fresh and text.get("hf_tokenizer_name") else ""


def _clip_config(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's configuration, and its pixel mean and std if known."""
    if name.startswith((_HUB, _FOLDER)):
        path = Path(name.removeprefix(_FOLDER)) / "open_clip_config.json"
        if name.startswith(_HUB):
            try:
                with no_retries_offline():
                    path = Path(open_clip.factory.download_pretrained_from_hf(name.removeprefix(_HUB), path.name))
            except Exception as error:
                raise UserError(
                    f"the description of {name} could not be downloaded; give its folder as local-dir:FOLDER, or use a "
                    "model that open_clip includes, such as ViT-B-16-quickgelu"
                ) from error
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content["model_cfg"], content.get("preprocess_cfg", {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} does not exist or does not describe a model; give a folder saved by open_clip"
            ) from error
    config = open_clip.get_model_config(name)
    if config is None:
        hint = near_names(name, [*supported_clip_models(), "biomedclip"])
        raise UserError(f"clip.image: open_clip has no model '{name}'{hint} A timm backbone is written timm:NAME")
    return config, {}


def _why_unsupported(config: dict[str, Any]) -> str | None:
    vision = config["vision_cfg"]
    if "multimodal_cfg" in config or vision.get("attentional_pool"):
        return "its attention pooling gives no patch embeddings; use a ViT such as ViT-B-16-quickgelu"
    if not vision.get("timm_model_name") and not isinstance(vision.get("layers", 12), int):
        return "its ResNet pools by attention; use timm:resnet50, or a ViT such as ViT-B-16-quickgelu"
    return None


def _check_supported(name: str, config: dict[str, Any], *, fresh: bool) -> None:
    if reason := _why_unsupported(config):
        raise UserError(f"clip.image: {name} has no attention maps: {reason}, or a ViT such as ViT-B-16-quickgelu")
    text = config["text_cfg"]
    if text.get("hf_model_name") or (fresh and text.get("hf_tokenizer_name")):
        _require_transformers(name)


def _require_transformers(name: str) -> None:
    if not importlib.util.find_spec("transformers"):
        raise UserError(
            f"{name} needs the package transformers for its text tower; install it: pip install 'dcmt-knee[biomedclip]'"
        )


def _clip_weights(name: str, pretrained: bool | str, option: str, *, fresh: bool) -> tuple[Path | None, dict[str, Any]]:
    """The file of the weights (None unless ``fresh``), and open_clip's settings for their tag."""
    if not pretrained:
        return None, {}
    if isinstance(pretrained, str) and Path(pretrained).exists():
        return _weights_in(Path(pretrained)) if fresh else None, {}
    if pretrained is True and name.startswith(_FOLDER):
        return _weights_in(Path(name.removeprefix(_FOLDER))) if fresh else None, {}
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = pretrained if isinstance(pretrained, str) else "openai" if "openai" in tags else next(iter(tags), "")
    if not fresh:
        return None, dict(open_clip.get_pretrained_cfg(name, tag)) if tag in tags else {}
    if isinstance(pretrained, str) and pretrained not in tags:
        hint = near_names(pretrained, tags)
        raise UserError(
            f"{option}: '{pretrained}' is neither a file nor a tag of {name} ({', '.join(tags) or 'none'}){hint}"
        )
    if pretrained is True and not tags and not name.startswith(_HUB):
        raise UserError(
            f"{option}: open_clip has no weights of {name}; give a local file, or start from {option}: false"
        )
    try:
        with no_retries_offline():
            if name.startswith(_HUB):
                return Path(open_clip.factory.download_pretrained_from_hf(name.removeprefix(_HUB))), {}
            known = open_clip.get_pretrained_cfg(name, tag)
            return Path(open_clip.download_pretrained(known)), dict(known)
    except Exception as error:
        raise no_download(f"the weights of {name}", option, error) from error


def _weights_in(path: Path) -> Path:
    """The path itself if it is a file, or the weights file in a folder."""
    if path.is_file():
        return path
    found = (
        sorted(path.glob("open_clip_*.safetensors")) or sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    )
    if not found:
        raise UserError(f"folder {path} contains no weights (*.safetensors or *.bin)")
    return found[0]


def _build_clip(name: str, config: dict[str, Any]) -> Any:
    keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias")
    text = config["text_cfg"]
    text["hf_model_pretrained"] = False
    config["vision_cfg"]["timm_model_pretrained"] = False
    values = {key: config[key] for key in keys if key in config}
    if not text.get("hf_model_name"):
        # In this class the text tower is a separate module; open_clip renames weights saved from the other class.
        return open_clip.CustomTextCLIP(**values)
    folder = Path(name.removeprefix(_FOLDER))
    if name.startswith(_FOLDER) and (folder / "config.json").is_file():
        text["hf_model_name"] = str(folder)
    try:
        with no_retries_offline():
            from transformers import AutoConfig

            # open_clip does not forbid code in the folder, so transformers would ask on the terminal whether to run it.
            AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)
            return open_clip.CustomTextCLIP(**values)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the description of the text tower {text['hf_model_name']} could not be read or downloaded "
            f"({type(error).__name__}), or needs its own code, which is never run; put its config.json and "
            "tokenizer files into a folder with open_clip_config.json, and give that as local-dir:FOLDER"
        ) from error


def _clip_image_tower(
    visual: Any,
    *,
    embed_dim: int,
    image_size: int,
    trainable: bool,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
) -> ImageTower:
    if hasattr(visual, "trunk"):
        visual.set_input_size(image_size)
        return TimmTokenTower(
            visual.trunk,
            visual.head,
            embed_dim=embed_dim,
            new_projection=False,
            trainable=trainable,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
    return ClipVitTower(visual, pixel_mean=pixel_mean, pixel_std=pixel_std, trainable=trainable)


class _NoTokenizer:
    """Replaces the tokenizer if the tokens come from a checkpoint: it knows only their number."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: list[str]) -> Tensor:
        raise NotImplementedError("a network to be filled from a checkpoint reads no phrases")


def _tokenizer_options(text: dict[str, Any]) -> dict[str, str | bool]:
    """Tokenizer options of a model that set how texts are cleaned; other options could name code to run."""
    given = text.get("tokenizer_kwargs") or {}
    return {name: given[name] for name in _TOKENIZER_OPTIONS if isinstance(given.get(name), str | bool)}


def _tokenizer(name: str, config: dict[str, Any]) -> Tokenizer:
    text = config["text_cfg"]
    context = int(text.get("context_length", 77))
    source = text.get("hf_tokenizer_name")
    tokenizer: Tokenizer
    if source:
        folder = name.removeprefix(_FOLDER) if name.startswith(_FOLDER) else source
        try:
            with no_retries_offline():
                tokenizer = HFTokenizer(
                    folder, context_length=context, trust_remote_code=False, **_tokenizer_options(text)
                )
        except Exception as error:
            raise UserError(
                f"the tokenizer {folder} could not be read or downloaded; put its files into the folder of a local-dir: model"
            ) from error
    else:
        tokenizer = SimpleTokenizer(context_length=context)
    return tokenizer
