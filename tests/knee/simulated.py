"""Simulated predictions for tests of metrics and intervals."""

import numpy as np


def simulated(
    rng: np.random.Generator, cases: int, count: int = 5, noise: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    grades = rng.integers(0, count, cases)
    logits = rng.normal(size=(cases, count)) * noise
    logits[np.arange(cases), grades] += 1
    exponential = np.exp(logits)
    return exponential / exponential.sum(axis=1, keepdims=True), grades
