"""What can go wrong while training, as errors with a hint: signals, memory, divergence, dead workers, idle losses."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from knee.data.datasets import worker_death
from knee.engine.device import out_of_memory
from knee.engine.state import Progress
from knee.engine.tracking import Window
from knee.errors import NotFinite, UserError

log = logging.getLogger(__name__)
_STOPPING = b"\nstopping after the step under way, which is then saved; Ctrl-C again ends at once\n"
"""Written past Python's buffers: a signal may come in the midst of a print."""


@contextlib.contextmanager
def guarded_step(progress: Progress, device: torch.device) -> Iterator[None]:
    """Around one optimiser step: lack of memory and a dead worker become a UserError with a hint."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise UserError(
                f"out of memory on {device} in step {progress.step}; lower data.labeled_per_batch and "
                "data.unlabeled_per_batch (fit.accumulation makes up for it), data.image_size, or take a smaller network"
            ) from error
        # torch notices a dead worker wherever the main process happens to be.
        raise worker_death(error) or error from error


@contextlib.contextmanager
def guarded_validation(progress: Progress, device: torch.device, precision: str) -> Iterator[None]:
    """Around a validation: outputs that are not finite and lack of memory become a UserError with a hint."""
    try:
        yield
    except NotFinite as error:
        raise UserError(
            f"training has diverged: in the validation after step {progress.step} the outputs are not finite; "
            + divergence_hint(precision)
        ) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"out of memory on {device} in the validation after step {progress.step}; end what else takes memory "
            "there and go on by --resume, or start a new run with a smaller data.image_size or network"
        ) from error


def diverged(progress: Progress, terms: Sequence[Mapping[str, Tensor]], precision: str) -> UserError:
    """The error of a run whose last steps all had a loss or gradient that is not finite; ``terms`` of the last one."""
    # Of several batches a step, the first that shows what is wrong.
    shown = next((one for one in terms if not all(value.isfinite() for value in one.values())), terms[-1])
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in shown.items())
    return UserError(
        f"{progress.bad_in_a_row} steps in a row had a loss or gradient that is not finite (the last at step "
        f"{progress.step}: {values}); {divergence_hint(precision)}"
    )


def divergence_hint(precision: str) -> str:
    """What to change where training diverges."""
    ways = "lower optimizer.learning_rate, or set optimizer.clip_norm (1.0, say)"
    return ways if precision == "fp32" else f"{ways}, or fit.precision to fp32"


class IdleTerms:
    """Warns once of a loss with a weight above 0 that is exactly 0, or without a gradient, over a whole epoch.

    A window of a few batches may have none of the images that a term is about.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._active: set[str] = set()

    def check(self, window: Window, *, step: int, epoch_done: bool) -> None:
        """Take a window of losses in; ``epoch_done``: every image was seen at least once."""
        idle = window.idle_terms()
        self._active |= window.terms() - idle
        if not epoch_done:
            return
        for name in idle - self._active - self._warned:
            self._warned.add(name)
            log.warning(
                f"warning: loss/{name} has a weight above 0 but was exactly 0, or without a gradient, in {window.count} "
                f"batches up to step {step}: it teaches nothing"
            )


class BufferKeeper:
    """Keeps a copy of all buffers, so that a step that is not finite leaves no trace in the statistics."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._buffers: list[Any] = [buffer for network in networks for buffer in network.buffers()]
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Copy the buffers as they are now."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def restore(self) -> None:
        """Bring the buffers back to what they were at ``keep``, in place."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


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
            # Else torch raises again for each of the workers that now end, while the first is being reported.
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
