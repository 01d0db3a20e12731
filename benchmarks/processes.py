"""How much faster two training processes of one thread are than one of one thread, at an equal global batch.

    python benchmarks/processes.py --backbone resnet18 --stage 3 --stride 8 --size 96

Whole steps of DC-MT on random tensors in memory, exchange of gradients included (gloo over loopback). One and several processes
alternate, round by round, and the median of the rounds' ratios counts. On a machine with other work the clock measures that
work, too; processor time shows what the processes would reach with a core each, but for waiting for each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from step import add_network_options, make_task, random_batch, timed, whole_step

from knee.nn import processes
from knee.task import Batch

GOAL = 1.7


def free_port() -> int:
    """A port of the loopback interface that nothing uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def own_part(batch: Batch, labeled: int) -> Batch:
    """Every n-th labeled and unlabeled image of a batch."""
    rows = [*processes.part_of(range(labeled)), *processes.part_of(range(labeled, len(batch.student)))]
    with_grade = [row for row in rows if row < labeled]
    return Batch(
        batch.student[rows], batch.teacher[rows], batch.grades[with_grade], batch.masks[with_grade],
        batch.has_mask[with_grade],
    )  # fmt: skip


def work(
    options: argparse.Namespace, rank: int, count: int, port: int, found: SimpleQueue[NDArray[np.float64]]
) -> None:
    """One process: its seconds a step, by the clock and of the processor."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    device = torch.device("cpu")
    with processes.joined(), tempfile.TemporaryDirectory() as folder:
        batch = own_part(random_batch(options, device), options.labeled)
        step, tracker = whole_step(make_task(options, device), batch, device, options.precision, Path(folder))
        for _ in range(2):
            step()
        times = [timed(step, device) for _ in range(options.steps)]
        tracker.close()
    found.put(np.mean(times, axis=0))


def seconds(options: argparse.Namespace, count: int) -> NDArray[np.float64]:
    """Seconds of a step in ``count`` processes, by the clock and of the processor: those of the slowest process."""
    context, port = multiprocessing.get_context("fork"), free_port()
    found: SimpleQueue[NDArray[np.float64]] = context.SimpleQueue()
    started = [context.Process(target=partial(work, options, rank, count, port, found)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit("a process failed; its message is above")
    return np.max([found.get() for _ in started], axis=0)


def main() -> None:
    """Print the two times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_options(parser)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = options.processes
    load = os.getloadavg()[0]
    rounds = [(seconds(options, 1), seconds(options, count)) for _ in range(options.rounds)]
    one, several = (np.median([pair[place] for pair in rounds], axis=0) for place in (0, 1))
    clock, processor = (median(float(pair[0][place] / pair[1][place]) for pair in rounds) for place in (0, 1))
    print(
        f"{options.backbone} at {options.size} px, {options.labeled} + {options.unlabeled} images, {options.precision}, one "
        f"thread a process, {os.cpu_count()} cores, load before {load:.1f}"
    )
    print(
        f"a step by the clock: 1 process {one[0]:.3f} s, {count} processes {several[0]:.3f} s: {clock:.2f} times (goal {GOAL})"
    )
    print(f"in processor time of each: {one[1]:.3f} s, {several[1]:.3f} s: {processor:.2f} times")


if __name__ == "__main__":
    main()
