"""A knee's prediction is the mean logits of its most severe slices."""

from __future__ import annotations

import pytest
import torch

from knee.nn.slice_pooling import pool_slices


def test_the_quarter_with_the_highest_expected_grade_is_averaged() -> None:
    spared, worst, second = [4.0, 0.0, 0.0], [0.0, 0.0, 4.0], [0.0, 1.0, 3.0]
    knee = torch.tensor([[spared, second, spared, spared, spared, worst, spared, spared]])
    assert pool_slices(knee)[0].tolist() == [0.0, 0.5, 3.5]
    assert pool_slices(knee, share=0.1)[0].tolist() == worst
    torch.testing.assert_close(pool_slices(knee, share=1.0), knee.mean(1))


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_up_to_four_slices_the_worst_one_decides(slices: int) -> None:
    knee = torch.zeros(1, slices, 3)
    knee[0, -1, 2] = 5
    assert pool_slices(knee)[0].tolist() == [0.0, 0.0, 5.0]


def test_the_order_of_the_slices_does_not_matter() -> None:
    torch.manual_seed(0)
    knees = torch.randn(3, 9, 5)
    torch.testing.assert_close(pool_slices(knees), pool_slices(knees[:, torch.randperm(9)]))


def test_gradients_reach_only_the_slices_that_are_averaged() -> None:
    knee = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]], requires_grad=True)
    pool_slices(knee).sum().backward()
    assert knee.grad is not None
    assert knee.grad.abs().sum(2)[0].ne(0).tolist() == [False, True, False, True, False]


def test_log_probabilities_give_the_same_probabilities() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 6, 4)
    torch.testing.assert_close(pool_slices(logits.log_softmax(2)).softmax(1), pool_slices(logits).softmax(1))
