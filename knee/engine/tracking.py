"""What a run writes of itself while it goes: ``metrics.csv``, the durable record, and TensorBoard beside it."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError
from knee.io.files import moved_into_place, remove_leftovers

METRICS_COLUMNS = ("step", "name", "value")


class Tracker:
    """Appends scalars to ``metrics.csv`` (columns step, name, value) and, if wanted, to TensorBoard.

    ``first_step`` is the step the run starts or resumes from: rows of later steps, left by a run that was killed after its
    last checkpoint, are dropped by ``open``, so that no step is recorded twice. Before it nothing is touched.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True, first_step: int = 0) -> None:
        self.path = folder / "metrics.csv"
        self.shows = tensorboard
        """Whether pictures are shown anywhere."""
        self._first_step = first_step
        self._earlier = read_metrics(self.path) if self.path.exists() else []
        self._file: Any = None
        self._board: Any = None

    def open(self) -> None:
        """Get ready to record."""
        self._drop_after(self._first_step)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        if self.shows:
            from torch.utils.tensorboard import SummaryWriter

            board = self.path.parent / "tensorboard"
            # TensorBoard then hides what a killed run showed of the steps to come.
            self._board = SummaryWriter(
                str(board), purge_step=self._first_step + 1 if board.exists() else None, flush_secs=30
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record ``values`` at optimiser step ``step``; a value that is not finite is recorded as such in the table."""
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
        """Bring everything to disk: no checkpoint may know of a row that a power cut can take away."""
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


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """The rows (step, name, value) of a ``metrics.csv``; a last line cut short by a kill is left out.

    Raises UserError for any other line that is no such row: written anew, the table would lack it.
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
                f"{path} line {number}: {text!r:.80} is not step,name,value, so the table was changed; restore it, or move it "
                "away and go on without what it holds"
            ) from error
        if not line.endswith(b"\n"):
            found.pop()  # the number may be cut, too
    return found
