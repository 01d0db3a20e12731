"""timm networks by name: unknown ones are refused with near ones, layers after a stage are cut off."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from knee.errors import UserError
from knee.nn.backbones import cut_after, is_known, pretrained_settings


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "resnet18.x:/y", "../resnet18", "", "no_such"]
)
def test_names_of_a_hub_or_a_folder_are_not_known(name: str) -> None:
    assert not is_known(name)
    with pytest.raises(UserError, match=r"model\.backbone: timm has no"):
        pretrained_settings(name, option="model.backbone")


def test_unknown_names_and_tags_come_with_near_ones() -> None:
    assert is_known("resnet18") and is_known("resnet18.a1_in1k")
    assert pretrained_settings("resnet18.a1_in1k", option="x").tag == "a1_in1k"
    with pytest.raises(UserError, match=r"x: timm has no 'resnt18'; did you mean .*resnet18"):
        pretrained_settings("resnt18", option="x")
    with pytest.raises(UserError, match=r"x: timm has no 'resnet18\.foo'; known are .*resnet18\.a1_in1k"):
        pretrained_settings("resnet18.foo", option="x")


def cut(stage: int, *, stride: int = 0, image_size: int = 64) -> tuple[nn.Module, int]:
    body = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    options = {"stage": stage, "image_size": image_size, "stride": stride, "channels": 1, "section": "model"}
    return body, cut_after(body, "resnet10t", **options)  # type: ignore[arg-type]


def test_a_later_cut_has_a_coarser_map_and_more_weights() -> None:
    sizes, weights = [], []
    for stage in (1, 2, 3):
        body, channels = cut(stage)
        assert body.training
        features = body.eval().forward_intermediates(
            torch.zeros(1, 1, 64, 64), indices=[stage], intermediates_only=True
        )
        assert features[0].shape[1] == channels
        sizes.append(features[0].shape[-1])
        weights.append(sum(parameter.numel() for parameter in body.parameters()))
    assert sizes == [16, 8, 4]
    assert weights == sorted(weights) and len(set(weights)) == 3


def test_a_stride_is_checked_and_0_takes_any() -> None:
    cut(2, stride=8)
    cut(2, stride=8, image_size=100)  # 100 / 8, rounded up
    with pytest.raises(
        UserError, match=r"model\.stride: resnet10t gives a feature map of 8 × 8 for 64 px, .* 8, not 16"
    ):
        cut(2, stride=16)
    with pytest.raises(UserError, match=r"model\.stage 17 of resnet10t at 64 px gives no feature map"):
        cut(17)
    options = {"stage": 0, "image_size": 64, "stride": 0, "channels": 1, "section": "clip"}
    with pytest.raises(UserError, match="net has no intermediate features in timm"):
        cut_after(nn.Identity(), "net", **options)  # type: ignore[arg-type]
