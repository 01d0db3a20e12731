"""SIGTERM ends a command within ten seconds, whatever it is waiting for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
_GRACE = 6.0


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the process to end: like Ctrl-C, so that temporary files are removed on the way out."""


def end_within(seconds: float = _GRACE, *, code: int = EXIT_CODE) -> None:
    """End this process in ``seconds`` at the latest, although its cleanup may be waiting for a thread or another process."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


@contextmanager
def obey_sigterm() -> Iterator[None]:
    """Raise ``Terminated`` at SIGTERM, and end the process some seconds later in any case; a second SIGTERM ends it at once.

    Without a handler the system ignores SIGTERM for the first process of a container. A handler of the caller is kept.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_within()
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
