"""SIGTERM ends what it reaches: by an exception that cleans up, and by force where that waits too long."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from knee.io import termination
from knee.io.termination import EXIT_CODE, Terminated, end_within, obey_sigterm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def exit_code(work: Callable[[], None]) -> int | None:
    """Of a forked process that runs ``work``; None if it still runs after ten seconds."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(10)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_an_exception_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[float] = []
    monkeypatch.setattr(termination, "end_within", lambda: ended.append(1))
    before = signal.getsignal(signal.SIGTERM)
    assert before == signal.SIG_DFL
    with pytest.raises(Terminated), obey_sigterm():
        terminate()
    assert ended == [1]
    assert signal.getsignal(signal.SIGTERM) == before


def test_files_are_removed_on_the_way_out(tmp_path: Path) -> None:
    def work() -> None:
        try:
            with obey_sigterm():
                (tmp_path / "part").touch()
                try:
                    terminate()
                finally:
                    (tmp_path / "part").unlink()
        except Terminated:
            os._exit(EXIT_CODE)

    assert exit_code(work) == EXIT_CODE
    assert list(tmp_path.iterdir()) == []


def test_cleanup_that_waits_ends_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "_GRACE", 0.1)
    monkeypatch.setattr(termination.end_within, "__defaults__", (0.1,))

    def work() -> None:
        with obey_sigterm():
            try:
                terminate()
            finally:
                time.sleep(60)

    assert exit_code(work) == EXIT_CODE


def test_a_second_sigterm_ends_at_once() -> None:
    def work() -> None:
        with obey_sigterm():
            try:
                terminate()
            finally:
                terminate()

    assert exit_code(work) == -signal.SIGTERM


def test_a_worker_may_end_with_another_code() -> None:
    def work() -> None:
        end_within(0.05, code=0)
        time.sleep(60)

    assert exit_code(work) == 0


def test_a_callers_handler_and_other_threads_are_left_alone() -> None:
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    try:
        with obey_sigterm():
            terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIGTERM]

    def elsewhere() -> None:
        with obey_sigterm():
            found.append(0)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.SIGTERM, 0]
