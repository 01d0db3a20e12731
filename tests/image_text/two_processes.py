"""Loss and gradients of a task on a batch in two processes, each with every second row, next to those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from image_text.batches import PairBatch
from knee.nn import processes
from tests.knee.nn.test_processes import in_processes


def loss_and_gradients(task: Any, batch: PairBatch, step: int) -> dict[str, torch.Tensor]:
    """Of the student in eval mode, whose batch statistics are fixed."""
    task.student.eval()
    rows = list(processes.part_of(range(len(batch.student))))
    losses = task.losses(PairBatch(*(part[rows] if len(part) else part for part in batch)), step)
    losses.total.backward()
    processes.average_gradients(task.parameters())
    terms = {name: float(value.detach()) for name, value in losses.terms.items()} | {
        "total": float(losses.total.detach())
    }
    found = {name: torch.tensor(value) for name, value in processes.average(terms, torch.device("cpu")).items()}
    named = task.student.named_parameters()
    return found | {f"gradient of {name}": one.grad.clone() for name, one in named if one.grad is not None}


def assert_two_equal_one(task: Any, batch: PairBatch, folder: Path, *, step: int = 0) -> None:
    def work() -> int:
        with processes.joined():
            found = loss_and_gradients(task, batch, step)
            torch.save(found, folder / f"found-{processes.rank()}.pt")
        return 0

    codes, printed = in_processes(work, folder)
    assert codes == [0, 0], printed
    wanted = loss_and_gradients(task, batch, step)
    for rank in range(2):
        found = torch.load(folder / f"found-{rank}.pt")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
