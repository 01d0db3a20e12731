"""Apply a function to many items in threads: results in order, with a progress bar and bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

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
