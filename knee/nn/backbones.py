"""timm networks as feature extractors: looked up by name, cut off after a stage, with a checked stride.

``section`` is the section of the config (``model``, ``clip``) and ``option`` the option that names the network; errors name
the option to change.
"""

from __future__ import annotations

import math
import re
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from knee.errors import UserError
from knee.nn.weights import near_names

_PLAIN_NAME = re.compile(r"\w+(\.[\w-]+)?", re.ASCII)


def is_known(name: str) -> bool:
    """Whether timm has an architecture of this name, with or without a tag; names of a hub or a folder are rejected.

    >>> is_known("resnet18.a1_in1k"), is_known("hf-hub:timm/resnet18"), is_known("resnet18.x:/y")
    (True, False, False)
    """
    return bool(_PLAIN_NAME.fullmatch(name)) and bool(timm.is_model(name))


def pretrained_settings(name: str, *, option: str) -> Any:
    """timm's settings for the weights ``name``; None if there are none. Raises UserError for an unknown name."""
    if not is_known(name):
        raise UserError(f"{option}: timm has no {name!r:.80}{near_names(name[:100], timm.list_models())}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that its architecture does not have
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise UserError(f"{option}: timm has no {name!r}; known are {tags}") from error


def cut_after(
    body: nn.Module, name: str, *, stage: int, image_size: int, stride: int, channels: int, section: str
) -> int:
    """Cut off the layers after ``stage``, in place; returns the number of channels of its feature map.

    ``stride`` is the input pixels per position of that map, sides rounded up (112 px at stride 32 give 4 positions); 0 accepts
    any stride. ``channels`` are those of an image. Raises UserError if the stage has no map, or one of another stride.
    """
    if not hasattr(body, "forward_intermediates"):
        raise UserError(f"{name} has no intermediate features in timm; take a ResNet, ConvNeXt or ViT")
    try:
        body.prune_intermediate_layers([stage], prune_norm=False, prune_head=True)  # type: ignore[operator]
        body.eval()
        with torch.no_grad():
            probe: Tensor = body.forward_intermediates(  # type: ignore[operator]
                torch.zeros(2, channels, image_size, image_size), indices=[stage], norm=True, intermediates_only=True
            )[0]
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{section}.stage {stage} of {name} at {image_size} px gives no feature map ({error}); -1 is the last stage"
        ) from error
    body.train()
    found = probe.shape[-1]
    if stride and found not in (image_size // stride, math.ceil(image_size / stride)):
        raise UserError(
            f"{section}.stride: {name} gives a feature map of {probe.shape[-2]} × {found} for {image_size} px, a stride of "
            f"about {image_size / found:.3g}, not {stride}; set {section}.stride to 0 to accept this stride, or choose another "
            f"{section}.stage"
        )
    return int(probe.shape[1])


def freeze_first(body: nn.Module, name: str, stages: int) -> None:
    """Exclude the stem and the first ``stages`` stages from training, in place; 0 excludes nothing.

    Their features of pretrained weights suit most images, and their maps are the largest, so a step takes less time. Their
    normalisation statistics still follow the images. Raises UserError if nothing would be left to train.
    """
    if not stages:
        return
    groups = group_parameters(body, body.group_matcher(coarse=True))  # type: ignore[operator]
    frozen = [key for key in groups if key <= stages]
    if len(frozen) <= stages or len(frozen) == len(groups):
        raise UserError(
            f"model.frozen_stages: {name} has {len(groups) - 1} stages; freeze fewer than these, not {stages}"
        )
    names = {parameter for key in frozen for parameter in groups[key]}
    for key, parameter in body.named_parameters():
        parameter.requires_grad_(key not in names)
