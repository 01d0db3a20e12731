"""Items mapped in threads: results in order, errors passed on, no more than one window ahead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from knee.errors import UserError
from knee.io.pool import ahead, map_in_order, require_shared_memory, start_worker, worker_death


def test_results_come_in_order_whatever_each_takes() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 8 == 0 else 0)
        return number * number

    found = map_in_order(slow_first, range(600), description="squares", progress=False)
    assert list(found) == [number * number for number in range(600)]
    assert list(map_in_order(slow_first, [], description="none", progress=False)) == []


def test_items_are_computed_at_most_one_window_ahead() -> None:
    done: list[int] = []
    found = map_in_order(done.append, range(2000), description="ahead", progress=False)
    for taken in range(1, 300):
        next(found)
        assert len(done) <= 256 * (1 + (taken - 1) // 256)
    found.close()  # type: ignore[attr-defined]
    assert len(done) <= 512


def test_one_item_is_computed_ahead_and_an_error_comes_in_its_place() -> None:
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(9):
            begun.append(number)
            if number == 3:
                raise ValueError("three")
            yield number

    found = ahead(numbers())
    for number in range(3):
        assert next(found) == number and len(begun) <= number + 2
    with pytest.raises(ValueError, match="three"):
        next(found)
    assert list(ahead([])) == [] and begun == [0, 1, 2, 3]


def test_an_error_is_raised_at_its_place() -> None:
    found = map_in_order(lambda number: 1 / (number - 3), range(9), description="errors", progress=False)
    assert [next(found) for _ in range(3)] == [1 / -3, 1 / -2, 1 / -1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_batches_of_workers_must_fit_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4_000_000))
    require_shared_memory(1_000_000, 2)
    require_shared_memory(10**12, 0)
    message = r"/dev/shm has 3\.8 MiB free, but the batches of 2 workers need 3\.9 MiB; set data\.workers to 0"
    with pytest.raises(UserError, match=message):
        require_shared_memory(1_010_000, 2)


def test_workers_that_died_or_hang_are_explained() -> None:
    assert worker_death(RuntimeError("CUDA error: out of memory")) is None
    died = worker_death(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert "a process that loads images died" in str(died)
    hang = worker_death(RuntimeError("DataLoader timed out after 300 seconds"))
    assert "gave no batch for 300 s" in str(hang) and "set data.workers to 0" in str(hang)


def test_a_worker_outlives_the_sigterm_of_a_scheduler_while_a_step_may_need_it(tmp_path: Path) -> None:
    def work() -> None:
        start_worker(0)
        os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "served").touch()
        os._exit(3)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(10)
    assert process.exitcode == 3
    assert (tmp_path / "served").exists()
