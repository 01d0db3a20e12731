"""Stopping a run after the step under way, on SIGTERM and SIGINT."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class stop_on_signal:
    """SIGTERM and SIGINT ask to stop; a second SIGINT ends at once."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: signals are the caller's
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._ask()
        # Schedulers may send SIGTERM more than once; a person who presses Ctrl-C again does not want to wait.
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
