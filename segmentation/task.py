"""Training the segmenter as a ``knee.task.Task``: it uses the same training loop as the graders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from knee.task import Batch, StepLosses, Validation
from segmentation.losses import cross_entropy, dice_loss
from segmentation.unet import Segmenter


class SegmentationTask:
    """A segmenter trained on drawn masks with a weighted sum of Dice loss and cross-entropy."""

    best_metric = "val/dice"

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
    ) -> None:
        self.segmenter = segmenter
        self.networks: Mapping[str, nn.Module] = {"segmenter": segmenter}
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.validation: Validation | None = None

    def parameters(self) -> Iterable[nn.Parameter]:
        """All parameters of the U-Net."""
        return self.segmenter.parameters()

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Dice loss and cross-entropy of a batch whose images all have a mask; ``step`` is ignored."""
        logits = self.segmenter(batch.student)
        terms = {"dice": dice_loss(logits, batch.masks), "cross_entropy": cross_entropy(logits, batch.masks)}
        total = self.dice_weight * terms["dice"] + self.cross_entropy_weight * terms["cross_entropy"]
        return StepLosses(total, terms, {})

    def after_update(self, step: int) -> Mapping[str, float]:
        """Does nothing: there is no teacher to update."""
        return {}

    def validate(self, step: int) -> Mapping[str, float]:
        """Dice and IoU per image on the validation images that have a mask."""
        return self.validation(self.networks, step) if self.validation else {}
