"""The cartilage segmenter: a U-Net from segmentation-models-pytorch, with any of its encoders."""

from __future__ import annotations

import contextlib

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from knee.errors import UserError
from knee.io.plain import shown
from knee.nn.backbones import is_known
from knee.nn.weights import near_names, no_retries_offline

_EXTERNAL = ("tu-hf-hub:", "tu-hf_hub:", "tu-local-dir:")


class Segmenter(nn.Module):
    """A U-Net with one output: the logit of cartilage at each pixel. It normalizes its input itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, unet: nn.Module, *, mean: float = 0.5, std: float = 0.25, multiple: int = 32) -> None:
        super().__init__()
        self.unet = unet
        self.multiple = multiple
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1, H, W) in [0, 1] → logits (B, H, W); any size; padded so that the encoder can halve it evenly."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        padded = nn.functional.pad((images - self.mean) / self.std, (0, right, 0, bottom), mode="replicate")
        logits: Tensor = self.unet(padded)
        return logits[:, 0, :height, :width]


def is_external(encoder: str) -> bool:
    """Whether the encoder is a timm model of a hub or a folder.

    >>> is_external("tu-hf-hub:timm/resnet18"), is_external("tu-resnet18")
    (True, False)
    """
    return encoder.startswith(_EXTERNAL)


def build_segmenter(encoder: str, *, encoder_weights: str = "", mean: float = 0.5, std: float = 0.25) -> Segmenter:
    """A segmenter on ``encoder`` (a name of segmentation-models-pytorch, timm's as ``tu-NAME``).

    ``encoder_weights`` "imagenet" downloads weights by name, "" starts from random weights. Raises UserError for an
    unknown encoder, or if the weights are not available.
    """
    known = encoder in smp.encoders.get_encoder_names() or is_known(encoder.removeprefix("tu-"))
    if not known and not is_external(encoder):
        hint = near_names(encoder[:100], smp.encoders.get_encoder_names()) or "; timm's encoders are written tu-NAME"
        raise UserError(f"unet.encoder: segmentation-models-pytorch has no {shown(encoder)}{hint}")
    try:
        with no_retries_offline() if encoder_weights else contextlib.nullcontext():
            unet = smp.Unet(encoder, encoder_weights=encoder_weights or None, in_channels=1, classes=1)
    except KeyError as error:
        hint = near_names(encoder, smp.encoders.get_encoder_names()) or "; timm's encoders are written tu-NAME"
        raise UserError(f"unet.encoder: segmentation-models-pytorch has no {encoder!r}{hint}") from error
    except Exception as error:
        if not encoder_weights:
            raise UserError(
                f"unet.encoder {encoder!r} cannot be built: {' '.join(str(error).split())[:200]}"
            ) from error
        raise UserError(
            f"the weights {encoder_weights!r} of {encoder} could not be fetched ({type(error).__name__}); start from random "
            "weights by unet.encoder_weights: '' (40 drawn masks are enough for that on the phantom)"
        ) from error
    return Segmenter(unet, mean=mean, std=std)
