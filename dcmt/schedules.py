"""Schedules: pure functions of the optimizer step."""

from __future__ import annotations

import math


def exponential_ramp(step: int, length: int, *, start: int = 0) -> float:
    """w(τ) = exp(−5 (1 − τ/τ_max)²): the ramp-up of the consistency losses (Huo et al. 2020, Eq. 5).

    step τ ≥ 0 and length τ_max ≥ 0, in optimizer steps → e^-5 at 0, 1 from ``length`` on and for length 0. τ is counted from
    ``start`` (0 in the paper), and w is 0 before it.

    >>> [round(exponential_ramp(step, 100), 4) for step in (0, 50, 100, 200)]
    [0.0067, 0.2865, 1.0, 1.0]
    >>> exponential_ramp(0, 0)
    1.0
    >>> [round(exponential_ramp(step, 100, start=50), 4) for step in (49, 50, 100, 150)]
    [0.0, 0.0067, 0.2865, 1.0]
    """
    if step < start:
        return 0.0
    if step - start >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - (step - start) / length) ** 2)


def teacher_decay(step: int, decay: float) -> float:
    """α_τ = min(α, 1 − 1/(τ + 1)): the decay of Eq. 1 with a warm-up, in which the teacher is a plain average of the students.

    At step 0 the decay is 0: the teacher becomes a copy of the student after its first update.

    >>> [teacher_decay(step, 0.99) for step in (0, 1, 3, 10_000)]
    [0.0, 0.5, 0.75, 0.99]
    """
    return min(decay, 1.0 - 1.0 / (step + 1))


def default_teacher_decay(steps: int, *, share: float = 0.05, highest: float = 0.999) -> float:
    """α such that the teacher averages over at most ``share`` of the run: 1/(1 − α) = share · steps.

    The paper does not give α. With a fixed α close to 1, the teacher of a short run would lag behind the student.

    >>> default_teacher_decay(1000)
    0.98
    >>> default_teacher_decay(10), default_teacher_decay(10**6)
    (0.0, 0.999)
    """
    window = share * steps
    return 0.0 if window <= 1 else min(highest, 1.0 - 1.0 / window)
