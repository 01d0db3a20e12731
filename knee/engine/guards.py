"""Handling of problems during training, with hints: signals, memory, divergence, dead workers, idle losses."""

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

from knee.engine.device import out_of_memory
from knee.engine.state import Progress
from knee.engine.tracking import Window
from knee.errors import NotFinite, UserError
from knee.io.pool import worker_death
from knee.io.termination import Terminated, end_within

log = logging.getLogger(__name__)
_STOPPING = b"\nstopping after the current step, which is then saved; press Ctrl-C again to stop at once\n"
"""Written without Python's buffers, since a signal may arrive during a print."""
_PATIENCE, _GRACE = 2.5, 4.0
"""After SIGTERM: how long a wait may go on, and then how long saving may take; together less than ten seconds."""


@contextlib.contextmanager
def guarded_step(progress: Progress, device: torch.device) -> Iterator[None]:
    """Around one optimizer step: exhausted memory and a dead worker become a UserError with a hint."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise UserError(
                f"out of memory on {device} in step {progress.step}; lower data.labeled_per_batch and "
                "data.unlabeled_per_batch (raise fit.accumulation instead), lower data.image_size, or use a smaller network"
            ) from error
        # torch reports a dead worker at any point of the main process.
        raise worker_death(error) or error from error


@contextlib.contextmanager
def guarded_validation(progress: Progress, device: torch.device, precision: str) -> Iterator[None]:
    """Around a validation: outputs that are not finite and exhausted memory become a UserError with a hint."""
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
            f"out of memory on {device} in the validation after step {progress.step}; free memory there "
            "and continue with --resume, or start a new run with a smaller data.image_size or network"
        ) from error


def refuse_batch_of_one(networks: Iterable[nn.Module], image_size: int, device: torch.device) -> None:
    """Raises UserError if a network cannot train on one image at a time: batch statistics of one value on a 1 × 1 map."""
    image, random = torch.zeros(1, 1, image_size, image_size, device=device), torch.get_rng_state()
    for network in networks:
        buffers = BufferKeeper([network])
        try:
            with torch.no_grad():
                network.train()(image)
        except ValueError as error:
            raise UserError(
                "the batch has one image and the network's last feature map one position, so batch statistics would be of a "
                "single value; raise data.labeled_per_batch or data.unlabeled_per_batch, or lower the network's stride"
            ) from error
        buffers.restore()
    torch.set_rng_state(random)


def diverged(progress: Progress, terms: Sequence[Mapping[str, Tensor]], precision: str) -> UserError:
    """The error for too many consecutive steps with a loss or gradient that is not finite; ``terms`` of the last step."""
    # If a step has several batches, report the first one with a term that is not finite.
    shown = next((one for one in terms if not all(value.isfinite() for value in one.values())), terms[-1])
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in shown.items())
    return UserError(
        f"{progress.bad_in_a_row} steps in a row had a loss or gradient that is not finite (the last at step "
        f"{progress.step}: {values}); {divergence_hint(precision)}"
    )


def divergence_hint(precision: str) -> str:
    """The options to change if training diverges."""
    hint = "lower optimizer.learning_rate, or set optimizer.clip_norm (for example to 1.0)"
    return hint if precision == "fp32" else f"{hint}, or set fit.precision to fp32"


class IdleTerms:
    """Warns once if a loss with a weight above 0 is exactly 0, or has no gradient, over a whole epoch.

    A shorter window may happen to contain no image that the term applies to.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._active: set[str] = set()

    def check(self, window: Window, *, step: int, epoch_done: bool) -> None:
        """Add a window of losses; ``epoch_done``: every image was used at least once."""
        idle = window.idle_terms()
        self._active |= window.terms() - idle
        if not epoch_done:
            return
        for name in idle - self._active - self._warned:
            self._warned.add(name)
            log.warning(
                f"warning: loss/{name} has a weight above 0 but was exactly 0, or without a gradient, in {window.count} "
                f"batches up to step {step}: it has no effect"
            )


class BufferKeeper:
    """Keeps a copy of all buffers, so that a skipped step does not change the statistics."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._buffers: list[Any] = [buffer for network in networks for buffer in network.buffers()]
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Copy the buffers as they are now."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def restore(self) -> None:
        """Restore the buffers to their values at ``keep``, in place."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


class stop_on_signal:
    """SIGTERM and SIGINT request a stop after the current step; a second SIGINT stops at once.

    If ``is_waiting`` some seconds after a SIGTERM, for a batch or a validation, ``Terminated`` is raised there.
    If a worker dies, torch raises at any point of the main process, also during validation and checkpoints; this becomes a
    UserError.
    """

    def __init__(self, request_stop: Callable[[], None], is_waiting: Callable[[], bool] = lambda: False) -> None:
        self._request_stop = request_stop
        self._is_waiting = is_waiting
        self._before: dict[int, Any] = {}
        self._has_alarm = hasattr(signal, "setitimer")

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: signals are the caller's
                return
        if self._has_alarm:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._end_if_waiting)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        raised = (error, error.__cause__) if error is not None else ()
        deaths = [death for one in raised if isinstance(one, RuntimeError) and (death := worker_death(one))]
        if deaths and self._before and hasattr(signal, "SIGCHLD"):
            # Otherwise torch raises again for each of the other workers as they end.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._has_alarm and self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if deaths and isinstance(error, RuntimeError):
            raise deaths[0] from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._request_stop()
        # Job schedulers may send SIGTERM more than once, but a second Ctrl-C means that the user does not want to wait.
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING)
        elif self._has_alarm:
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE, 1.0)

    def _end_if_waiting(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting():
            signal.setitimer(signal.ITIMER_REAL, 0)
            end_within(_GRACE)
            raise Terminated
