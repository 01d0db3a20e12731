"""Learning-rate schedules: limits, monotony, torch's one-cycle schedule."""

from __future__ import annotations

import pytest
import torch

from knee.engine.schedules import learning_rate_factor


def test_learning_rate_schedules() -> None:
    assert all(learning_rate_factor(step, 50, schedule="constant") == 1.0 for step in (0, 25, 49))
    cosine = [learning_rate_factor(step, 50, schedule="cosine", warmup=5) for step in range(50)]
    assert cosine[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine[5:] == sorted(cosine[5:], reverse=True)
    with pytest.raises(ValueError, match="not constant, cosine or onecycle"):
        learning_rate_factor(0, 50, schedule="linear")


def test_onecycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100, cycle_momentum=False)
    for step in range(99):
        ours = learning_rate_factor(step, 100, schedule="onecycle")
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        optimizer.step()
        reference.step()


def test_cosine_ends_at_its_final_value_and_stays_there() -> None:
    assert learning_rate_factor(50, 50, schedule="cosine", final=0.1) == pytest.approx(0.1)
    assert learning_rate_factor(500, 50, schedule="cosine", final=0.1) == pytest.approx(0.1)
    assert learning_rate_factor(25, 50, schedule="cosine", final=0.0) == pytest.approx(0.5)
