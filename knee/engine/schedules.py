"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, steps: int, *, schedule: str, warmup: int = 0, final: float = 0.01) -> float:
    """The factor on the base learning rate at ``step`` of ``steps``.

    ``schedule``: "constant", "cosine" (to ``final`` at the end) or "onecycle" (as torch's OneCycleLR without its change of
    momentum: cosine from 1/25 up to 1 over the first 30 %, then down to 1/250 000).
    ``warmup`` steps rise linearly before constant and cosine.

    >>> [round(learning_rate_factor(s, 100, schedule="cosine"), 3) for s in (0, 50, 100)]
    [1.0, 0.505, 0.01]
    >>> [round(learning_rate_factor(s, 100, schedule="onecycle"), 3) for s in (0, 29, 99)]
    [0.04, 1.0, 0.0]
    >>> learning_rate_factor(4, 100, schedule="constant", warmup=10)
    0.5
    """
    if schedule == "onecycle":
        peak = 0.3 * steps - 1
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 250_000, min(1.0, (step - peak) / max(steps - 1 - peak, 1)))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return _cosine(1.0, final, min(1.0, (step - warmup) / max(steps - warmup, 1)))
    raise ValueError(f"schedule {schedule!r} is not constant, cosine or onecycle")


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
