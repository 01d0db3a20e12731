"""What signals do to a run: SIGTERM and SIGINT stop it after the step under way, a worker's death ends it with a sentence."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from knee.data.datasets import worker_death

_STOPPING = b"\nstopping after the step under way, which is then saved; Ctrl-C again ends at once\n"
"""Written past Python's buffers: a signal may come in the midst of a print."""


class stop_on_signal:
    """SIGTERM and SIGINT ask to stop; the first SIGINT says so, a second ends at once.

    torch raises where the main process happens to be when a worker dies, in validation and in a checkpoint, too: that
    leaves as UserError.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: signals are the caller's
                return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        raised = (error, error.__cause__) if error is not None else ()
        deaths = [death for one in raised if isinstance(one, RuntimeError) and (death := worker_death(one))]
        if deaths and self._before and hasattr(signal, "SIGCHLD"):
            # Else torch raises again for each of the workers that now end, in the midst of whatever tells of the first.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if deaths and isinstance(error, RuntimeError):
            raise deaths[0] from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._ask()
        # Schedulers may send SIGTERM more than once; a person who presses Ctrl-C again does not want to wait.
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING)
