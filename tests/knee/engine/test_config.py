"""The sections optimizer, fit and report: every range is refused just beyond its ends."""

from __future__ import annotations

from typing import Any

import pytest

from knee.engine.config import FitConfig, OptimizerConfig, ReportConfig


@pytest.mark.parametrize(
    ("kind", "option", "accepted", "refused"),
    [
        (OptimizerConfig, "learning_rate", 1e-9, (0.0, -1.0, float("inf"))),
        (OptimizerConfig, "weight_decay", 0.0, (-1e-9,)),
        (OptimizerConfig, "warmup_steps", 0, (-1,)),
        (OptimizerConfig, "clip_norm", 0.0, (-0.1,)),
        (FitConfig, "steps", 1, (0,)),
        (FitConfig, "epochs", 0, (-1,)),
        (FitConfig, "accumulation", 1, (0,)),
        (FitConfig, "validate_every", 0, (-1,)),
        (FitConfig, "log_every", 1, (0,)),
        (FitConfig, "threads", 1024, (-1, 1025)),
        (FitConfig, "seed", 2**63 - 1, (-1, 2**63)),
        (FitConfig, "checkpoint_minutes", float("inf"), (0.0, -1.0)),
        (FitConfig, "patience", 0, (-1,)),
        (FitConfig, "most_bad_steps", 1, (0,)),
        (ReportConfig, "cases", 16, (-1, 17)),
        (ReportConfig, "bootstrap", 100, (99, 10**6 + 1)),
    ],
)
def test_ranges_end_where_they_say(kind: type[Any], option: str, accepted: Any, refused: tuple[Any, ...]) -> None:
    assert getattr(kind(**{option: accepted}), option) == accepted
    for value in refused:
        with pytest.raises(ValueError, match=rf"\.{option} is .*; it must be"):
            kind(**{option: value})
