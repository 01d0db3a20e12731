"""Correction of predictions for the distribution of the labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from knee.nn.prior import PriorCorrected


def test_probabilities_are_divided_by_the_frequencies_of_the_labels(small_grader: Callable[..., nn.Module]) -> None:
    grader = small_grader().eval()
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([60, 10, 30])
    found, plain = PriorCorrected(grader, counts)(images), grader(images)
    wanted = plain.logits.softmax(1) / (counts / 100)
    torch.testing.assert_close(found.logits.softmax(1), wanted / wanted.sum(1, keepdim=True))
    assert torch.equal(found.class_maps, plain.class_maps)
    even = PriorCorrected(grader, torch.tensor([7, 7, 7]))(images)
    torch.testing.assert_close(even.logits.softmax(1), plain.logits.softmax(1))


def test_a_prediction_that_only_repeats_the_frequencies_becomes_undecided(
    small_grader: Callable[..., nn.Module],
) -> None:
    class Frequencies(nn.Module):
        def forward(self, images: torch.Tensor) -> object:
            grading = small_grader()(images)
            return grading._replace(logits=torch.tensor([[0.6, 0.1, 0.3]]).log().expand(len(images), -1))

    found = PriorCorrected(Frequencies(), torch.tensor([6, 1, 3]))(torch.zeros(2, 1, 16, 16))
    torch.testing.assert_close(found.logits.softmax(1), torch.full((2, 3), 1 / 3))


def test_a_grade_without_labels_stays_finite(small_grader: Callable[..., nn.Module]) -> None:
    found = PriorCorrected(small_grader(), torch.tensor([9, 0, 3]))(torch.zeros(2, 1, 16, 16))
    assert torch.isfinite(found.logits).all()
