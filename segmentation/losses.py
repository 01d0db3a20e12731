"""Losses of the segmenter: Dice and binary cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

_DICE = DiceLoss(mode="binary", from_logits=True)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 − Dice of the soft prediction, over the batch (Milletari et al. 2016; segmentation-models-pytorch).

    logits (B, H, W), mask (B, H, W) in {0, 1} → scalar in [0, 1]; float32. 0 if the masks of the batch are all empty.
    """
    loss: Tensor = _DICE(logits.float()[:, None], mask.float()[:, None])
    return loss


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy per pixel, averaged. logits (B, H, W), mask (B, H, W) in {0, 1} → scalar ≥ 0; float32."""
    return F.binary_cross_entropy_with_logits(logits.float(), mask.float())
