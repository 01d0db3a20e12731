"""The segmenter: any image size, its own normalisation, and names that are refused in a sentence."""

from __future__ import annotations

import pytest
import torch

from knee.errors import UserError
from segmentation.unet import Segmenter, build_segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter("resnet18", mean=0.2, std=0.1).eval()


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (50, 37), (33, 65)])
def test_any_size_comes_back_as_it_was(size: tuple[int, int], segmenter: Segmenter) -> None:
    with torch.no_grad():
        logits = segmenter(torch.rand(2, 1, *size))
    assert logits.shape == (2, *size)
    assert torch.isfinite(logits).all()


def test_normalises_its_input_by_itself(segmenter: Segmenter) -> None:
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = Segmenter(segmenter.unet, mean=0.0, std=1.0).eval()
    with torch.no_grad():
        assert torch.allclose(segmenter(images), plain((images - 0.2) / 0.1), atol=1e-4)
    assert {"mean", "std"} <= set(segmenter.state_dict())


@pytest.mark.parametrize("name", ["resnet19", "nothing like it"])
def test_unknown_encoder_is_told(name: str) -> None:
    with pytest.raises(UserError, match=f"has no '{name}'"):
        build_segmenter(name)


def test_offline_weights_give_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Max retries\nexceeded")

    monkeypatch.setattr("knee.nn.weights.can_reach", lambda address: False)
    monkeypatch.setattr("segmentation.unet.smp.Unet", offline)
    with pytest.raises(UserError, match=r"could not be fetched .*encoder_weights: ''") as caught:
        build_segmenter("resnet18", encoder_weights="imagenet")
    assert "\n" not in str(caught.value)
