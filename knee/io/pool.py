"""Work in parallel: a function applied to many items in threads, and the shared memory that worker processes need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from knee.errors import UserError

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


_SHARED = "/dev/shm"
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
