"""Work in parallel: a function applied to many items in threads, and the worker processes of loaders."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

from tqdm import tqdm

from knee.errors import UserError
from knee.io.termination import end_within

Item = TypeVar("Item")
Result = TypeVar("Result")

# Decoders release the interpreter's lock most of the time; at most one window of results waits to be yielded.
_WINDOW = 256


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, description: str, progress: bool = True
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, computed at most 256 items ahead of the caller.

    >>> list(map_in_order(abs, [-1, 2, -3], description="signs off"))
    [1, 2, 3]
    """
    threads = max(1, min(8, os.cpu_count() or 1))
    # None: a progress bar on a terminal, nothing in a log file.
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(items), desc=description, unit="image", disable=None if progress else True) as bar,
    ):
        for start in range(0, len(items), _WINDOW):
            for result in pool.map(function, items[start : start + _WINDOW]):
                bar.update()
                yield result


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items in order; a thread computes the next one while the caller uses one.

    >>> list(ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    end = object()
    rest = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, rest, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, rest, end)
            yield cast("Item", item)


_SHARED = "/dev/shm"
PATIENCE_S = 300
"""How long to wait for a batch from worker processes."""
_BATCHES_AHEAD = 2


def require_shared_memory(bytes_of_a_batch: int, workers: int) -> None:
    """Raises UserError if the batches of ``workers`` processes do not fit into shared memory, where they would wait forever.

    Each worker prepares two batches ahead. Does nothing without workers, or where the system has no ``/dev/shm``.
    """
    if not workers or not os.path.isdir(_SHARED):  # noqa: PTH112 (a constant path)
        return
    needed, free = _BATCHES_AHEAD * workers * bytes_of_a_batch, shutil.disk_usage(_SHARED).free
    if free < needed:
        raise UserError(
            f"{_SHARED} has {free / 2**20:.1f} MiB free, but the batches of {workers} workers need {needed / 2**20:.1f} MiB; "
            "set data.workers to 0, or give the container more shared memory (docker run --shm-size 1g)"
        )


def worker_death(error: RuntimeError) -> UserError | None:
    """The error message for worker processes of the loader that were killed or hang; None for any other error."""
    if "DataLoader timed out" in str(error):
        return UserError(
            f"the processes that load images gave no batch for {PATIENCE_S} s: the disk of the images hangs, or shared memory "
            "(/dev/shm) is full; set data.workers to 0, or give the machine or container more"
        )
    if not re.search(r"DataLoader worker \(pid", str(error)):
        return None
    return UserError(
        f"a process that loads images died ({str(error).splitlines()[0]}), most often for lack of memory or of shared "
        "memory (/dev/shm); set workers to 0 or fewer, or give the machine or container more"
    )


def start_worker(worker: int) -> None:
    """Prepare a worker process of a loader: one thread, and signals that do not stop it while a step needs it."""
    import cv2  # slow, and only this needs it

    cv2.setNumThreads(0)
    # Ctrl-C in a terminal reaches the whole process group, but the main process needs its workers to finish the step and save.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    # A job scheduler's SIGTERM reaches every process: this one stays until the main process has had time to finish its step.
    signal.signal(signal.SIGTERM, lambda number, frame: end_within(code=0))
