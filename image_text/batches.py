"""Batches of pairs: an image in two views with its report, both of one row of the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from image_text.joint.cells import Cells
from image_text.reports import Reports
from knee.batches import TwoStreamBatchSampler
from knee.data.config import DataConfig
from knee.data.datasets import LabeledImages, TargetImages, TwoStreams, batch_to, train_loader
from knee.data.prepare import KneeData, refuse_uneven
from knee.data.views import ViewConfig, Views
from knee.errors import UserError
from knee.io.pool import require_shared_memory
from knee.task import Batch

Rows = NDArray[np.int64]


class PairBatch(NamedTuple):
    """Images with their reports, row by row."""

    student: Tensor
    """(B, 1, H, W) float32 in [0, 1], padding marked: the student's view."""
    teacher: Tensor
    """(B, 1, H, W) the teacher's view of the same geometry."""
    tokens: Tensor
    """(B, L) int64."""
    texts: Tensor
    """(B,) int64, equal for equal reports; −1 without a report."""
    studies: Tensor
    """(B,) int64, equal for images of one knee at one visit."""
    grades: Tensor
    """(B,) int64; −1 where there is none, or it is not used."""
    numbers: Tensor = torch.zeros(0, 0)
    """(B, C) float32 cells of the table, NaN where there is none; empty without a table."""
    categories: Tensor = torch.zeros(0, 0, dtype=torch.int64)
    """(B, C) int64, −1 where there is none."""
    tables: Tensor = torch.zeros(0, dtype=torch.int64)
    """(B,) equal for equal cells, −1 without any."""
    further: Tensor = torch.zeros(0, 0, dtype=torch.int64)
    """(B, S) further grades; −1 where there is none, or the grade is not used. Empty without a further grade set."""


class PairBatches:
    """Batches of pairs on the device, starting at any batch of the run, as ``knee.engine.fit`` needs them.

    ``rows`` are those to train on; ``grades`` (N,) those that may be used, −1 elsewhere. With ``unlabeled_per_batch`` a batch
    starts with images that have a grade (``streams_of``). Views, order and resuming are those of the graders' streams.
    ``cells`` and ``further`` grades (N, S) are added if given.
    """

    def __init__(
        self,
        data: KneeData,
        config: DataConfig,
        views: ViewConfig,
        reports: Reports,
        *,
        rows: Rows,
        grades: NDArray[np.int64],
        seed: int,
        device: torch.device,
        channels_last: bool,
        cells: Cells | None = None,
        further: NDArray[np.int64] | None = None,
    ) -> None:
        first, others, counts = streams_of(rows, grades, config)
        refuse_uneven(labeled_per_batch=counts[0], unlabeled_per_batch=counts[1])
        # Both streams carry one number for each image: here its row.
        streams = TwoStreams(
            LabeledImages(data.cache.images, first, first),
            TargetImages(data.cache.images, others, others.astype(np.float32)[:, None]),
            Views(views, config.image_size),
            seed=seed,
        )
        sampler = TwoStreamBatchSampler(
            range(len(first)),
            range(len(others)),
            labeled_per_batch=counts[0],
            unlabeled_per_batch=counts[1],
            seed=seed,
        )
        require_shared_memory(4 * sum(counts) * config.image_size**2, config.workers)
        self._loader = train_loader(streams, sampler, workers=config.workers, pin_memory=device.type == "cuda")
        self._device, self._channels_last = device, channels_last
        self._reports, self._grades, self._studies, self._cells = reports, grades, studies_of(data), cells
        self._further = None if further is None else np.where(grades[:, None] >= 0, further, -1)
        self.per_epoch = len(sampler)

    def from_batch(self, batch: int) -> Iterator[PairBatch]:
        """Endless batches, starting at batch number ``batch`` of the run."""
        epoch, within = divmod(batch, self.per_epoch)
        self._loader.load_state_dict({"epoch": epoch, "batch": within})
        while True:
            for found in self._loader:
                yield self._paired(found)

    def _paired(self, batch: Batch) -> PairBatch:
        rows = torch.cat([batch.grades, batch.targets.reshape(-1).long()]).numpy()
        images = batch_to(batch, self._device, channels_last=self._channels_last)

        def moved(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(values[rows].astype(np.int64)).to(self._device, non_blocking=True)

        found = PairBatch(
            images.student,
            images.teacher,
            tokens=moved(self._reports.tokens),
            texts=moved(self._reports.texts),
            studies=moved(self._studies),
            grades=moved(self._grades),
        )
        if self._further is not None and self._further.shape[1]:
            found = found._replace(further=moved(self._further))
        if self._cells is None:
            return found
        numbers = torch.from_numpy(self._cells.numbers[rows]).to(self._device, non_blocking=True)
        return found._replace(
            numbers=numbers, categories=moved(self._cells.categories), tables=moved(self._cells.groups)
        )


def streams_of(rows: Rows, grades: NDArray[np.int64], config: DataConfig) -> tuple[Rows, Rows, tuple[int, int]]:
    """The rows of both streams, and how many of each a batch has.

    With ``unlabeled_per_batch`` the first stream has the rows with a grade, and the second all: few grades are then seen in
    every batch. Without it, or without any grade, there is one stream of all rows. Raises UserError for too few rows.
    """
    graded = rows[grades[rows] >= 0]
    many, more = config.labeled_per_batch, config.unlabeled_per_batch
    two = bool(more and len(graded))
    option, wanted = ("unlabeled_per_batch", more) if two else ("labeled_per_batch", many + more)
    if len(rows) < wanted:
        raise UserError(
            f"{len(rows)} training images have a report, fewer than data.{option} ({wanted}); "
            f"give --data.{option} {max(len(rows), 2)} or less, or more reports"
        )
    return (graded, rows, (many, more)) if two else (rows, rows[:0], (wanted, 0))


def studies_of(data: KneeData) -> NDArray[np.int64]:
    """(N,) equal numbers for images of one patient, side and visit."""
    table = data.manifest.table
    columns = ["patient", "side", *(["visit"] if "visit" in table else [])]
    return np.asarray(table.groupby(columns, sort=False).ngroup(), dtype=np.int64)
