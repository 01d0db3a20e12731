"""How fast a whole training step is, beside the floor of the same networks on the same batch, and what memory it takes.

    python benchmarks/step.py --backbone resnet18 --stage 3 --stride 8 --size 96

The floor: student forward and backward with a cross-entropy, teacher forward, optimiser, on random tensors in memory. The
step: what ``knee.engine.fit`` does, on the same tensors: all losses, attention, clipping off, the moving average, the check for
values that are not finite, the bookkeeping of the log. Both run in turns, so that a change of the machine's load meets both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from dcmt.config import LossConfig
from dcmt.mean_teacher import MeanTeacher
from dcmt.network import build_network
from knee.engine.checkpoint import Checkpoints
from knee.engine.config import FitConfig, OptimizerConfig
from knee.engine.device import autocast, choose_device, memory_gib
from knee.engine.fit import Batches, Fit, make_optimizer
from knee.engine.tracking import Tracker
from knee.engine.training import place
from knee.task import Batch


class OneBatch:
    """The same batch again and again, on the device."""

    per_epoch = 1000

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def from_batch(self, batch: int) -> Iterator[Batch]:
        while True:
            yield self.batch


@dataclass(frozen=True)
class Rates:
    """Seconds of a step, and how much longer the whole one takes: medians of the rounds."""

    floor: float
    step: float
    overhead: float
    overhead_cpu: float
    """The same in processor time, which other work on the machine disturbs less."""


def random_batch(options: argparse.Namespace, device: torch.device) -> Batch:
    """Random pixels, a band as mask."""
    generator = torch.Generator().manual_seed(0)
    count, labeled, size = options.labeled + options.unlabeled, options.labeled, options.size
    layout = torch.channels_last
    views = [torch.rand(count, 1, size, size, generator=generator).to(device, memory_format=layout) for _ in range(2)]
    masks = torch.zeros(labeled, size, size)
    masks[:, size // 3 : size // 2] = 1
    grades = torch.randint(0, 3, (labeled,), generator=generator)
    has_mask = torch.ones(labeled, dtype=torch.bool)
    return Batch(views[0], views[1], grades.to(device), masks.to(device), has_mask.to(device))


def make_task(options: argparse.Namespace, device: torch.device) -> MeanTeacher:
    """DC-MT with all its terms."""
    torch.manual_seed(0)
    student = build_network(
        options.backbone, grades=3, image_size=options.size, stride=options.stride, stage=options.stage
    )
    task = MeanTeacher(student, loss=LossConfig(), decay=0.99, ramp_steps=100)
    place(task.networks, device, channels_last=True)
    return task


def floor_step(task: MeanTeacher, batch: Batch, device: torch.device, precision: str) -> Callable[[], None]:
    """One step of the floor."""
    optimizer = make_optimizer(task, OptimizerConfig(), device)
    targets = torch.zeros(len(batch.student), dtype=torch.int64, device=device)
    student: nn.Module = task.student

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = F.cross_entropy(student(batch.student).logits, targets)
            with torch.no_grad():
                task.teacher(batch.teacher)
        loss.backward()
        optimizer.step()

    return step


def whole_step(
    task: MeanTeacher, batch: Batch | Batches, device: torch.device, precision: str, folder: Path
) -> tuple[Callable[[], None], Tracker]:
    """One step of the loop, its log every ten steps included."""
    tracker = Tracker(folder, tensorboard=False)
    fit = Fit(
        task=task,
        batches=OneBatch(batch) if isinstance(batch, Batch) else batch,
        config=FitConfig(),
        optimizer_config=OptimizerConfig(),
        device=device,
        precision=precision,
        tracker=tracker,
        checkpoints=Checkpoints(folder),
        steps=1_000_000,
    )
    batches = fit.batches.from_batch(0)

    def step() -> None:
        fit.step(batches)

    return step, tracker


def timed(step: Callable[[], None], device: torch.device) -> NDArray[np.float64]:
    """Seconds by the clock and of the processor that one step takes."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(options: argparse.Namespace, device: torch.device, precision: str) -> Rates:
    """Floor and step in turns, step by step; medians over the rounds."""
    batch = random_batch(options, device)
    floor = floor_step(make_task(options, device), batch, device, precision)
    with tempfile.TemporaryDirectory() as folder:
        whole, tracker = whole_step(make_task(options, device), batch, device, precision, Path(folder))
        for _ in range(options.warm_up):
            floor()
            whole()
        floors, wholes = [], []
        for _ in range(options.rounds):
            pairs = [(timed(floor, device), timed(whole, device)) for _ in range(options.steps)]
            floors.append(sum(pair[0] for pair in pairs) / options.steps)
            wholes.append(sum(pair[1] for pair in pairs) / options.steps)
        tracker.close()
    overhead, overhead_cpu = np.median([whole / floor for floor, whole in zip(floors, wholes, strict=True)], axis=0) - 1
    return Rates(np.median(floors, axis=0)[0], np.median(wholes, axis=0)[0], overhead, overhead_cpu)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """What ``make_task`` and ``random_batch`` read."""
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--labeled", type=int, default=20)
    parser.add_argument("--unlabeled", type=int, default=10)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_options(parser)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round (the log is written every ten)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    images = options.labeled + options.unlabeled
    print(
        f"{options.backbone}, stage {options.stage}, stride {options.stride}, {options.size} px, "
        f"{options.labeled} + {options.unlabeled} images, {device}, {torch.get_num_threads()} threads"
    )
    print(f"{'precision':10}{'floor':>16}{'step':>16}{'overhead':>10}{'in CPU time':>13}{'peak memory':>14}")
    for precision in options.precision:
        found = compare(options, device, precision)
        print(
            f"{precision:10}{images / found.floor:>9.1f} img/s{images / found.step:>9.1f} img/s{found.overhead:>10.1%}"
            f"{found.overhead_cpu:>13.1%}"
            f"{memory_gib(device):>10.2f} GiB"
        )


if __name__ == "__main__":
    main()
