"""timm's backbones as image towers.

``pretrained`` is true (timm's weights), a local file, or false (random weights).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from clip_koa.towers import ImageTower, TimmMapTower, TimmTokenTower
from knee.errors import UserError
from knee.nn.backbones import cut_after, pretrained_settings
from knee.nn.weights import misfit, no_download, no_retries_offline, read_state


def timm_tower(
    name: str,
    *,
    embed_dim: int,
    image_size: int,
    stride: int = 16,
    stage: int = -1,
    pretrained: bool | str = False,
    trainable: bool = True,
    option: str = "clip.pretrained",
) -> ImageTower:
    """timm's backbone ``name`` with a projection into ``embed_dim`` dimensions.

    ``stride`` is the input pixels per patch (0: the backbone's own; for a vision transformer the patch size). ``stage`` is
    the stage whose feature map is used; later stages are cut off.

    Raises:
        UserError: an unknown name (with similar ones), an unsupported stride or stage, weights as in ``clip_towers``.
    """
    settings = pretrained_settings(name, option="clip.image")
    tokens = timm.models.is_model_in_modules(name.partition(".")[0], ["vision_transformer", "deit"])
    fixed = bool(settings and settings.fixed_input_size)
    if pretrained is True and not (settings and settings.has_weights):
        raise UserError(f"{option}: timm has no weights of {name}; give a local file, or start from {option}: false")
    sizes: dict[str, Any] = {"img_size": image_size} if fixed else {}
    if stride:
        sizes |= {"patch_size": stride} if tokens else {} if fixed else {"output_stride": stride}
    body = _create_timm(name, sizes, pretrained, option)
    pixels: dict[str, Any] = {
        "pixel_mean": body.pretrained_cfg["mean"],
        "pixel_std": body.pretrained_cfg["std"],
        "trainable": trainable,
    }
    if tokens:
        projection = nn.Linear(body.num_features, embed_dim, bias=False)
        return TimmTokenTower(body, projection, embed_dim=embed_dim, **pixels)
    features = cut_after(body, name, stage=stage, image_size=image_size, stride=stride, channels=3, section="clip")
    return TimmMapTower(body, features=features, embed_dim=embed_dim, stage=stage, **pixels)


def _create_timm(name: str, sizes: dict[str, Any], pretrained: bool | str, option: str) -> Any:
    try:
        if isinstance(pretrained, str):
            return _create_from_file(name, sizes, Path(pretrained))
        if not pretrained:
            return timm.create_model(name, num_classes=0, **sizes)
        with no_retries_offline():
            return timm.create_model(name, num_classes=0, pretrained=True, **sizes)
    except UserError:
        raise
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"clip.stride: {name} cannot change its stride in timm; set clip.stride to 0 to use its own"
        ) from error
    except Exception as error:
        if pretrained is not True:
            raise UserError(f"clip.image: {name} cannot be built ({error}); choose another") from error
        raise no_download(f"the weights of {name}", option, error) from error


def _create_from_file(name: str, sizes: dict[str, Any], path: Path) -> Any:
    state = read_state(path, name)
    try:
        body = timm.create_model(
            name, num_classes=0, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}, **sizes
        )
    except RuntimeError as error:
        raise misfit(path, name, error) from error
    own = body.state_dict()
    # timm silently skips tensors that do not fit, so loaded ones are counted. Position embeddings may have been interpolated.
    loaded = sum(key in state and (torch.equal(own[key], state[key]) or "pos_embed" in key) for key in own)
    if loaded < 0.9 * len(own):
        raise misfit(path, name, ValueError(f"{loaded} of {len(own)} tensors fit"))
    return body
