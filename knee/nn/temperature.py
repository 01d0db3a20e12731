"""Temperature scaling: one number that calibrates the probabilities of a trained network (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from knee.task import Grader, Grading

RANGE = (0.25, 20.0)
"""The temperatures that are fitted and accepted: with lower ones, probabilities of 0 would hide what they were before."""
_HALVINGS = 60


class Tempered(nn.Module):
    """A grader whose logits are divided by a temperature; grades and class maps stay the same."""

    def __init__(self, grader: Grader, temperature: float) -> None:
        super().__init__()
        self.grader = grader
        self.temperature = temperature

    def forward(self, images: object) -> Grading:
        """Images (B, 1, H, W) in [0, 1]."""
        grading = self.grader(images)  # type: ignore[arg-type]
        return Grading(grading.logits.float() / self.temperature, grading.class_maps)


def fit_temperature(probabilities: NDArray[np.floating], grades: NDArray[np.int64]) -> float:
    """The temperature T > 0 that minimizes the mean negative log-likelihood of softmax(log p / T) (Guo et al. 2017, 4.2).

    probabilities (N, K) of the uncalibrated network, grades (N,). The loss is convex in 1/T, so its derivative is bisected
    within ``RANGE``; where all predictions are right, T is the lower end. 1 without cases.

    >>> fit_temperature(np.array([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1]))  # certain at 0.9, right at 0.75: ln 9 / ln 3
    2.0
    """
    if not len(grades):
        return 1.0
    logs = np.log(np.clip(np.asarray(probabilities, np.float64), 1e-30, None))
    chosen = logs[np.arange(len(grades)), grades].mean()
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        shares = _softmax(logs * middle)
        if (shares * logs).sum(1).mean() < chosen:
            low = middle
        else:
            high = middle
    return round(float(1 / (low * high) ** 0.5), 6)


def tempered(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Probabilities (N, K) after division of their logits by ``temperature``; 1/T undoes it.

    >>> tempered(np.array([[0.9, 0.1]]), 2.0).round(3).tolist()
    [[0.75, 0.25]]
    """
    return _softmax(np.log(np.clip(np.asarray(probabilities, np.float64), 1e-300, None)) / temperature)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
