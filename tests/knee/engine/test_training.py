"""The frame of a training run: number of steps, choice of precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcmt.config import LossConfig
from dcmt.mean_teacher import MeanTeacher
from knee.engine.config import FitConfig
from knee.engine.training import count_steps, settle_precision

CPU = torch.device("cpu")


def test_trying_precisions_leaves_no_trace(
    small_grader: Callable[..., nn.Module], seeded_batches: Callable[[], Any]
) -> None:
    task = MeanTeacher(small_grader(dropout=0.5), loss=LossConfig(), decay=0.9, ramp_steps=1)
    for network in task.networks.values():
        network.train()

    def state() -> list[Tensor]:
        return [value.clone() for network in task.networks.values() for value in network.state_dict().values()]

    before, random = state(), torch.get_rng_state()
    assert settle_precision(FitConfig(precision="auto"), task, seeded_batches(), CPU) in ("bf16", "fp32")
    assert all(torch.equal(one, other) for one, other in zip(before, state(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in task.parameters())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"steps": 100}, 100),
        ({"steps": 100, "accumulation": 4}, 100),
        ({"steps": 100, "epochs": 3}, 30),
        ({"epochs": 3, "accumulation": 4}, 7),
        ({"epochs": 1, "accumulation": 50}, 1),
    ],
)
def test_epochs_come_before_steps_and_give_at_least_one(options: dict[str, int], wanted: int) -> None:
    assert count_steps(FitConfig(**options), 10) == wanted  # type: ignore[arg-type]
