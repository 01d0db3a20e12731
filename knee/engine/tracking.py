"""Recording of a training run: mean losses and metrics, in ``metrics.csv`` (the durable record) and TensorBoard."""

from __future__ import annotations

import csv
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knee.errors import UserError
from knee.io.files import moved_into_place, remove_leftovers
from knee.task import StepLosses

METRICS_COLUMNS = ("step", "name", "value")


class Tracker:
    """Appends scalars to ``metrics.csv`` (columns step, name, value) and optionally to TensorBoard.

    ``first_step`` is the step at which the run starts or resumes. Rows of later steps, from a run that was killed after its
    last checkpoint, are removed by ``open``, so that no step is recorded twice. Nothing is changed before ``open``.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True, first_step: int = 0) -> None:
        self.path = folder / "metrics.csv"
        self.shows = tensorboard
        """Whether images are recorded."""
        self._first_step = first_step
        self._earlier = read_metrics(self.path) if self.path.exists() else []
        self._file: Any = None
        self._board: Any = None

    def open(self) -> None:
        """Open the files for recording."""
        self._drop_after(self._first_step)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        if self.shows:
            from torch.utils.tensorboard import SummaryWriter

            board = self.path.parent / "tensorboard"
            # TensorBoard then hides later steps of a killed run.
            purge_step = self._first_step + 1 if board.exists() else None
            with _nameless_machine():
                self._board = SummaryWriter(str(board), purge_step=purge_step, flush_secs=30)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record ``values`` at optimizer step ``step``; a value that is not finite is recorded as such in the table."""
        for name, value in values.items():
            self._rows.writerow([step, name, format(float(value), ".9g")])
            if self._board is not None and math.isfinite(value):
                self._board.add_scalar(name, value, step)
        self._file.flush()

    def image(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Show an RGB image (H, W, 3) in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Sync all rows to disk, so that a power failure after a checkpoint cannot lose rows from before it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush and close; the tracker cannot be used after."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _drop_after(self, step: int) -> None:
        kept, self._earlier = [row for row in self._earlier if row[0] <= step], []
        remove_leftovers(self.path)
        with moved_into_place(self.path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(METRICS_COLUMNS)
            rows.writerows([number, name, format(value, ".9g")] for number, name, value in kept)


class Silent(Tracker):
    """Records nothing: for all but the first of several processes."""

    def __init__(self) -> None:
        self.shows = False

    def open(self) -> None:
        """Nothing."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def image(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@contextmanager
def _nameless_machine() -> Iterator[None]:
    """Keep the machine's name out of TensorBoard's file names, since a run may be shared."""
    before = socket.gethostname
    socket.gethostname = lambda: "run"
    try:
        yield
    finally:
        socket.gethostname = before


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """The rows (step, name, value) of a ``metrics.csv``; an incomplete last line of a killed run is left out.

    Raises UserError for any other invalid line, since it would be lost when the table is rewritten.
    """
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    found: list[tuple[int, str, float]] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip(b"\r\n\0").decode(errors="backslashreplace")
        try:
            step, name, value = text.split(",")
            if (step, number) != ("step", 1):
                found.append((int(step), name, float(value)))
        except ValueError as error:
            if number == len(lines) or not text:
                continue
            raise UserError(
                f"{path} line {number}: {text!r:.80} is not step,name,value, so the table was edited; restore it, or move it "
                "away and continue without its rows"
            ) from error
        if not line.endswith(b"\n"):
            found.pop()  # the number itself may be incomplete
    return found


class Window:
    """Losses and monitors since the last log row; means are computed only then, so that steps need not wait for the device."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.schedules: dict[str, float] = {}
        self.images = 0
        self.started = time.monotonic()
        self._step: list[dict[str, Tensor]] = []
        self._without_gradient: set[str] = set()

    @property
    def count(self) -> int:
        """Number of batches in the window."""
        return len(self.values.get("loss/total", ()))

    def add(self, losses: StepLosses) -> None:
        """Add a batch of the current step."""
        named = {"loss/total": losses.total, **{f"loss/{name}": value for name, value in losses.terms.items()}}
        named |= {name if "/" in name else f"attention_map/{name}": value for name, value in losses.monitors.items()}
        self._step.append({name: value.detach() for name, value in named.items()})
        self._without_gradient |= {name for name, value in losses.terms.items() if not value.requires_grad}

    def terms_under_way(self) -> list[dict[str, Tensor]]:
        """The named terms of each batch of the current step."""
        return [
            {
                name.removeprefix("loss/"): value
                for name, value in named.items()
                if name.startswith("loss/") and name != "loss/total"
            }
            for named in self._step
        ]

    def keep(self) -> None:
        """Keep the batches of the current step, which was taken."""
        for named in self._step:
            for name, value in named.items():
                self.values.setdefault(name, []).append(value)
        self._step = []

    def drop(self) -> None:
        """Discard the batches of the current step, which was skipped."""
        self._step = []

    def tensors(self) -> dict[str, Tensor]:
        """All values by name, for a checkpoint, so that a resumed run logs the same means."""
        return {name: _stacked(values) for name, values in self.values.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore the values of `tensors` on ``device``, where later values will be. Raises UserError for anything else."""
        for name, values in tensors.items():
            if values.ndim != 1 or not values.is_floating_point():
                raise UserError(
                    f"window.safetensors of the checkpoint holds {name!r:.80}, which is not a row of losses; restore "
                    "another checkpoint, or start a new run with another --name"
                )
        self.values = {name: list(values.to(device).unbind()) for name, values in tensors.items()}

    def means(self) -> dict[str, float]:
        """The mean of each value, ordered by name."""
        return {name: _stacked(self.values[name]).mean().item() for name in sorted(self.values)}

    def terms(self) -> set[str]:
        """The names of the loss terms in the window."""
        return {name.removeprefix("loss/") for name in self.values if name.startswith("loss/")} - {"total"}

    def idle_terms(self) -> set[str]:
        """Terms that were exactly 0 in every batch of the window, or had no gradient."""
        zero = {
            name for name in self.terms() if self.count >= 2 and not any(v.item() for v in self.values[f"loss/{name}"])
        }
        return zero | self._without_gradient


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.float() for value in values])
