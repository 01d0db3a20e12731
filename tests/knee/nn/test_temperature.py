"""Temperature scaling against a plain grid search, at its limits, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from knee.nn.temperature import RANGE, Tempered, fit_temperature, tempered
from knee.task import Grading


class Fixed(nn.Module):
    """Gives the same logits for every batch, with maps of ones."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> Grading:
        """The logits."""
        return Grading(self.logits, torch.ones(len(self.logits), self.logits.shape[1], 2, 2))


def loss(logits: np.ndarray, grades: np.ndarray, temperature: float) -> float:
    """The mean negative log-likelihood, written as in the paper."""
    total = 0.0
    for row, grade in zip(logits / temperature, grades, strict=True):
        total -= np.log(np.exp(row[grade]) / sum(np.exp(one) for one in row))
    return total / len(grades)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("count", [2, 5])
def test_the_fit_is_the_minimum_of_the_likelihood(true: float, count: int) -> None:
    rng = np.random.default_rng(int(10 * true) + count)
    logits = rng.normal(0, 1.5, (400, count))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    grades = np.array([rng.choice(count, p=row) for row in shares])
    given = true * logits  # too certain by the factor that the fit has to find
    found = fit_temperature(torch.from_numpy(given).softmax(1).numpy(), grades)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 400))
    best = grid[np.argmin([loss(given, grades, one) for one in grid])]
    assert found == pytest.approx(best, rel=0.013)
    assert loss(given, grades, found) <= min(loss(given, grades, one) for one in (best, true, 1.0)) + 1e-9


def test_limits_of_the_fit() -> None:
    right = np.array([[0.7, 0.3], [0.2, 0.8]])
    assert fit_temperature(right, np.array([0, 1])) == pytest.approx(RANGE[0], rel=1e-3)
    assert fit_temperature(right, np.array([1, 0])) == pytest.approx(RANGE[1], rel=1e-3)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0
    certain = np.array([[1.0, 0.0]] * 4)
    assert RANGE[0] <= fit_temperature(certain, np.array([0, 0, 0, 1])) <= RANGE[1]


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1.0, 1.8, 20.0])
def test_grades_and_maps_stay_the_same(temperature: float) -> None:
    logits = torch.randn(500, 5, generator=torch.Generator().manual_seed(3)) * 8
    grading = Tempered(Fixed(logits), temperature)(torch.zeros(500, 1, 4, 4))
    assert torch.equal(grading.logits.softmax(1).argmax(1), logits.argmax(1))
    assert torch.equal(grading.class_maps, torch.ones(500, 5, 2, 2))
    expected = tempered(logits.double().softmax(1).numpy(), temperature)
    np.testing.assert_allclose(grading.logits.double().softmax(1).numpy(), expected, atol=2e-6)


def test_the_inverse_temperature_gives_the_probabilities_back() -> None:
    before = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    np.testing.assert_allclose(tempered(tempered(before, 2.5), 1 / 2.5), before, atol=1e-12)
