"""Work of an experiment in processes of one thread each, side by side, with its progress on the console.

On a small machine two single-threaded trainings side by side are faster than one with two threads after the other.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

EVERY_SECONDS = 60


@dataclass(frozen=True)
class Work:
    """A call, its name in the results, and the file that takes all it prints."""

    name: Hashable
    log: Path
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


def print_now(line: str) -> None:
    print(line, flush=True)


def nothing_more(done: Work, found: Any) -> Iterable[Work]:
    return ()


def side_by_side(
    work: Iterable[Work],
    jobs: int,
    then: Callable[[Work, Any], Iterable[Work]] = nothing_more,
    say: Callable[[str], None] = print_now,
) -> dict[Hashable, Any]:
    """Run all work, and what ``then`` says follows from each result. Returns the results by name.

    Raises RuntimeError naming the log of what failed; what is under way is finished first. When this process is
    killed, its workers end as well, so that nothing is still writing when it is started again.
    """
    found: dict[Hashable, Any] = {}
    began = time.monotonic()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting: dict[Future[Any], Work] = {}

        def add(more: Iterable[Work]) -> None:
            for one in more:
                one.log.parent.mkdir(parents=True, exist_ok=True)
                waiting[pool.submit(_apart, one, os.getpid())] = one

        add(work)
        while waiting:
            finished, _ = wait(waiting, timeout=EVERY_SECONDS, return_when=FIRST_COMPLETED)
            minutes = (time.monotonic() - began) / 60
            for future in finished:
                one = waiting.pop(future)
                if error := future.exception():
                    pool.shutdown(cancel_futures=True)
                    raise RuntimeError(f"{one.name} failed ({error!r}); see {one.log}") from error
                found[one.name] = future.result()
                say(f"{minutes:6.1f} min  {one.log.stem}: done, {len(waiting)} under way or waiting")
                add(then(one, found[one.name]))
            if not finished:
                for one in (one for future, one in waiting.items() if future.running() and one.log.exists()):
                    say(f"{minutes:6.1f} min  {one.log.stem}: {_last_line(one.log)}")
    return found


def _apart(work: Work, parent: int) -> Any:
    """In a process of its own: one thread, output to the log, and an end where the parent ends."""
    import torch

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    with work.log.open("a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    return work.call(*work.arguments)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _last_line(log: Path) -> str:
    """What was printed last; a progress bar overwrites its line again and again."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:110] for line in reversed(lines) if line.strip()), "begun")
