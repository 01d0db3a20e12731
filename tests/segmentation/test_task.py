"""The segmenter's task weighs its two losses."""

from __future__ import annotations

import pytest
import torch

from segmentation.task import SegmentationTask


class Constant(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.level.expand(images.shape[0], *images.shape[2:])


def test_task_weighs_its_two_terms() -> None:
    from knee.task import Batch

    images, mask = torch.rand(2, 1, 4, 4), (torch.rand(2, 4, 4) > 0.5).float()
    batch = Batch(images, images, torch.zeros(2, dtype=torch.int64), mask, torch.ones(2, dtype=torch.bool))
    task = SegmentationTask(Constant(), dice_weight=2.0, cross_entropy_weight=0.5)  # type: ignore[arg-type]
    found = task.losses(batch, 0)
    assert set(found.terms) == {"dice", "cross_entropy"}
    assert found.total.item() == pytest.approx(
        2 * found.terms["dice"].item() + 0.5 * found.terms["cross_entropy"].item()
    )
    assert task.validate(3) == {}
    assert task.after_update(3) == {}
