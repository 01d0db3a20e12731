"""Tiny networks and batches for the tests of the loop and its task."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knee.task import Batch, Grading


class SmallGrader(nn.Module):
    """Two convolutions at stride 4, a classifier that maps and grades; with or without normalisation and dropout."""

    def __init__(self, *, grades: int = 3, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, grades)

    def forward(self, images: Tensor) -> Grading:
        features = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        logits = self.classifier(self.dropout(features.mean((2, 3))))
        return Grading(logits, F.conv2d(features, self.classifier.weight.detach()[:, :, None, None]))


@pytest.fixture
def small_grader() -> Callable[..., SmallGrader]:
    """Builds a small grader from a seed: ``small_grader(seed=1, norm=False)``."""

    def build(*, seed: int = 0, grades: int = 3, norm: bool = True, dropout: float = 0.0) -> SmallGrader:
        torch.manual_seed(seed)
        return SmallGrader(grades=grades, norm=norm, dropout=dropout)

    return build


@pytest.fixture
def small_batch() -> Callable[..., Batch]:
    """A random batch from a seed, the teacher's view a noisy copy of the student's: ``small_batch(4, 2, seed=1)``."""

    def build(
        labeled: int = 4, unlabeled: int = 2, *, seed: int = 0, size: int = 16, masked: int | None = None
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        student = torch.rand(labeled + unlabeled, 1, size, size, generator=generator)
        noise = torch.rand(student.shape, generator=generator)
        masks = (torch.rand(labeled, size, size, generator=generator) > 0.7).float()
        has_mask = torch.arange(labeled) < (labeled if masked is None else masked)
        return Batch(
            student=student,
            teacher=0.8 * student + 0.2 * noise,
            grades=torch.randint(0, 3, (labeled,), generator=generator),
            masks=masks * has_mask[:, None, None],
            has_mask=has_mask,
        )

    return build
