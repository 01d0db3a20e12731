"""The optimizer's state on its way to disk and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from knee.engine.checkpoint import Checkpoints
from knee.engine.state import flatten_optimizer, restore_optimizer

Nets = Callable[..., nn.Module]


def test_optimizer_survives_the_way_to_disk(checkpoints: Checkpoints, small_grader: Nets) -> None:
    network = small_grader()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, fused=True)
    network(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    optimizer.step()
    tensors, groups = flatten_optimizer(optimizer)
    checkpoints.save(1, {}, {"optimizer": tensors}, {"groups": groups})
    found = checkpoints.latest()[0]
    other = torch.optim.Adam(network.parameters(), lr=0.5, fused=True)
    restore_optimizer(other, found.tensors("optimizer"), found.state["groups"])
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == [{**group, "betas": tuple(group["betas"])} for group in theirs["param_groups"]]
    for number, entry in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][number][key]) for key, value in entry.items())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_moments_lie_in_memory_as_their_weights_do(kind: Any, checkpoints: Checkpoints, small_grader: Nets) -> None:
    """A fused optimiser does not look at strides: moments of another layout would be given to other weights."""
    network = small_grader().to(memory_format=torch.channels_last)
    options = {"lr": 0.1, "fused": True} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    optimizer = kind(network.parameters(), **options)
    network(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    optimizer.step()
    tensors, groups = flatten_optimizer(optimizer)
    checkpoints.save(1, {}, {"optimizer": tensors}, {})
    other = kind(network.parameters(), **options)
    restore_optimizer(other, checkpoints.latest()[0].tensors("optimizer"), groups)
    for parameter, entry in other.state.items():
        for key, value in entry.items():
            assert torch.equal(value, optimizer.state[parameter][key])
            assert not value.ndim or value.stride() == parameter.stride()


def test_optimizer_of_other_shapes_is_refused(small_grader: Nets) -> None:
    network = small_grader()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    optimizer.step()
    tensors, groups = flatten_optimizer(optimizer)
    tensors["0.exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"exp_avg of shape \(7,\)"):
        restore_optimizer(torch.optim.Adam(network.parameters()), tensors, groups)
