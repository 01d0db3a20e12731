"""Options of the segmenter: loss weights that could not train anything are refused."""

from __future__ import annotations

import pytest

from segmentation.config import SegmenterConfig, UnetConfig


@pytest.mark.parametrize("name", ["dice_weight", "cross_entropy_weight"])
def test_one_loss_may_be_left_out_and_none_be_negative(name: str) -> None:
    assert getattr(UnetConfig(**{name: 0.0}), name) == 0
    with pytest.raises(ValueError, match=rf"unet\.{name} is -0\.5; it must be 0 or more"):
        UnetConfig(**{name: -0.5})


def test_both_losses_left_out_are_refused() -> None:
    with pytest.raises(ValueError, match="both 0; one must be above 0"):
        UnetConfig(dice_weight=0, cross_entropy_weight=0)


def test_a_segmenter_has_no_unlabeled_images() -> None:
    assert SegmenterConfig().data.unlabeled_per_batch == 0
