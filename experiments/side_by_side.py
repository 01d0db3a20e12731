"""Work of an experiment in processes of one thread each, side by side, with its progress on the console.

On a small machine two single-threaded trainings side by side are faster than one with two threads after the other.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_SECONDS = 60


@dataclass(frozen=True)
class Work:
    """A call, its name, and the file for all it prints."""

    name: str
    log: Path
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


def side_by_side(
    work: Iterable[Work],
    jobs: int,
    then: Callable[[Work, Any], Iterable[Work]] = lambda done, found: (),
) -> dict[str, Any]:
    """Run all work, and what ``then`` returns for each result. Returns the results by name.

    A failure does not stop other work. On Ctrl-C or SIGTERM the processes are asked to end, which lets a training save.
    When this process is killed, they end at once, so that nothing is still writing when it is started again.

    Raises:
        RuntimeError: some work failed; names each log.
        SystemExit: stopped by a signal, exit code 130.
    """
    found: dict[str, Any] = {}
    failed: list[str] = []
    began = time.monotonic()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # for the processes: this one has read it
    signal.signal(signal.SIGTERM, _interrupt)
    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[Any], Work] = {pool.submit(_in_a_process, one): one for one in work}
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=EVERY_SECONDS, return_when=FIRST_COMPLETED)
                minutes = (time.monotonic() - began) / 60
                for future in finished:
                    one, error = waiting.pop(future), future.exception()
                    if error is None:
                        found[one.name] = future.result()
                        waiting |= {pool.submit(_in_a_process, more): more for more in then(one, found[one.name])}
                    else:
                        failed.append(f"{one.name}: {error}")
                    state = "done" if error is None else f"FAILED ({error})"
                    print(f"{minutes:6.1f} min  {one.name}: {state}, {len(waiting)} running or waiting", flush=True)
                if not finished:
                    for one in (one for future, one in waiting.items() if future.running()):
                        print(f"{minutes:6.1f} min  {one.name}: {_last_line(one.log)}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            print("stopping: trainings save their state; the same command resumes them", flush=True)
            raise SystemExit(130) from None
    if failed:
        raise RuntimeError("; ".join(failed))
    return found


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _in_a_process(work: Work) -> Any:
    """The result of the call, which runs in a process of its own."""
    work.log.parent.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(work, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{_last_line(work.log)}; see {work.log}") from None
    finally:
        process.join()


def _call(work: Work, sender: Connection) -> None:
    """In the new process: output to the log, and an end when the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with work.log.open("a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log that can be followed
    sender.send(work.call(*work.arguments))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _last_line(log: Path) -> str:
    """The last line printed; a progress bar overwrites its line."""
    if not log.exists():
        return "starting"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:160] for line in reversed(lines) if line.strip()), "starting")
