"""Batch normalisation of two processes is that of one: outputs, gradients, running statistics, also of uneven shards."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.multiprocessing as spawned
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from knee.nn import processes
from knee.nn.batch_norm import synchronise
from tests.knee.nn.test_processes import as_one_of, free_port

IMAGES, FIRST, STEPS = 8, 3, 20
"""Images of a batch, and how many of them the first process has."""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(3 * 16, 2, bias=False), nn.BatchNorm1d(2, momentum=None))


def step(found: nn.Module, images: Tensor, targets: Tensor, of_batch: int) -> tuple[float, Tensor]:
    """One step of gradient descent on the mean over the batch; this process's part of the loss, and the images' gradient."""
    images = images.clone().requires_grad_()
    loss = ((found(images) - targets) ** 2).sum() / of_batch * processes.count()
    found.zero_grad()
    loss.backward()
    processes.average_gradients(found.parameters())
    with torch.no_grad():
        for parameter in found.parameters():
            parameter -= 0.1 * parameter.grad
    assert images.grad is not None
    return float(loss) / processes.count(), images.grad / processes.count()


def _trains_as_one(rank: int, port: int) -> None:
    import os

    alone = network()
    found = copy.deepcopy(alone)
    assert synchronise([found]) == 3
    assert found.state_dict().keys() == alone.state_dict().keys()
    torch.manual_seed(1)
    batches = [(torch.randn(IMAGES, 1, 8, 8) * 3 + 20, torch.randn(IMAGES, 2)) for _ in range(STEPS)]
    own = slice(0, FIRST) if rank == 0 else slice(FIRST, IMAGES)
    expected = [step(alone, *batch, of_batch=IMAGES) for batch in batches]
    os.environ |= as_one_of(rank, 2, port)
    with processes.joined():
        for (images, targets), (loss, gradient) in zip(batches, expected, strict=True):
            part, of_images = step(found, images[own], targets[own], of_batch=IMAGES)
            assert 2 * processes.average({"loss": part}, torch.device("cpu"))["loss"] == pytest.approx(loss, abs=1e-5)
            assert (of_images - gradient[own]).abs().max() < 1e-5
        for name, value in found.state_dict().items():
            assert (value - alone.state_dict()[name]).abs().max() < 1e-4, name
        images = batches[0][0]
        for one in (alone, found):
            one.eval()
        assert (found(images) - alone(images)).abs().max() < 1e-4


def test_two_uneven_processes_train_as_one() -> None:
    spawned.spawn(_trains_as_one, (free_port(),), nprocs=2)


def test_one_process_is_as_without() -> None:
    alone = network()
    found = copy.deepcopy(alone)
    synchronise([found])
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(found(images), alone(images))
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in found.state_dict().items())
    assert torch.equal(copy.deepcopy(found).eval()(images), alone.eval()(images))
