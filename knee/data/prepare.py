"""Prepare a data set from its configuration: memory-mapped images, the rows of each role, and batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from knee.batches import SlicesOfKnees, TwoStreamBatchSampler
from knee.data.cache import ImageCache, build_cache, holds_cache
from knee.data.cases import case_names, load_salt
from knee.data.check import check_data, drop_bad
from knee.data.config import DataConfig
from knee.data.datasets import (
    EvalImages,
    LabeledImages,
    TargetImages,
    TwoStreams,
    UnlabeledImages,
    batch_to,
    eval_loader,
    train_loader,
)
from knee.data.manifest import Manifest, read_manifest
from knee.data.splits import Split, labeled_rows, read_split, refuse_shared_pictures, unlabeled_rows
from knee.data.views import ViewConfig, Views
from knee.errors import UserError
from knee.grades import GradeSet, load_grade_set
from knee.images.masks import DilatedMasks
from knee.images.original import Source
from knee.images.slices import stacks
from knee.io.pool import require_shared_memory
from knee.nn import processes
from knee.task import Batch

Rows = NDArray[np.int64]
log = logging.getLogger(__name__)
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class KneeData:
    """A data set ready to train and evaluate on; row numbers refer to both the manifest and the cache."""

    grade_set: GradeSet
    manifest: Manifest
    split: Split
    cache: ImageCache
    labeled: Rows
    unlabeled: Rows
    mask_dilation: float
    salt: bytes
    percentiles: tuple[float, float] = (0.5, 99.5)
    """The percentiles that the images were prepared with."""

    @property
    def grades(self) -> NDArray[np.int64]:
        """(N,), −1 if ungraded."""
        return self.manifest.table["grade"].to_numpy(dtype=np.int64, na_value=-1)

    @property
    def masks(self) -> DilatedMasks:
        """The dilated masks that attention maps are compared with."""
        return DilatedMasks(self.cache.masks, self.mask_dilation)

    @property
    def patients(self) -> pd.Series:
        """(N,) patient identifiers."""
        return self.manifest.table["patient"]

    def cases(self, rows: Rows) -> list[str]:
        """Pseudonyms of cases, which may be shown to others."""
        return [self._case_names[row] for row in rows]

    @cached_property
    def _case_names(self) -> list[str]:
        """(N,), for all images, because no two of them may share a name."""
        return case_names(self.salt, self.manifest.table["image"].tolist())

    def source(self, row: int) -> Source:
        """The file of an image and how it was prepared, to display the original."""
        return Source(
            self.manifest.image_path(row), self.cache.geometry(row), bool(self.cache.inverted[row]), self.percentiles
        )

    def series(self, rows: Rows) -> list[str]:
        """The volume of each of ``rows`` (the manifest's column ``series``); '' for an image that is not a slice."""
        if "series" not in self.manifest.table:
            return [""] * len(rows)
        return [str(name) for name in self.manifest.table["series"].iloc[rows]]

    def rows(self, split: str) -> Rows:
        """Rows of train, val or test, or of "unlabeled": the training rows whose grade is not used."""
        return self.unlabeled if split == "unlabeled" else self.split.rows(split)

    def loader(self, rows: Rows, *, workers: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
        """Images of ``rows``, once and in order, for evaluation."""
        return eval_loader(EvalImages(self.cache.images, rows), batch_size=EVALUATION_BATCH, workers=workers)


def load_knee_data(
    config: DataConfig,
    *,
    rejected: Path | None = None,
    salt_folder: Path | None = None,
    graded: bool = True,
    of_run: bool = False,
) -> KneeData:
    """Read and check the manifest and the split, decode all images once, and assign rows to their roles.

    With ``data.skip_bad``, bad rows are listed in ``rejected``; ``salt_folder`` holds the salt of the case names if the
    manifest's folder cannot be written. With ``graded`` false, no labeled row is required (for the segmenter and for a
    zero-shot grader). With ``of_run`` the config is that of a run folder, perhaps a stranger's, which must not choose where
    files are written: its cache folder is used only if it holds a cache already.
    Raises UserError or Faults for all errors that must be fixed before training can start.
    """
    grade_set = load_grade_set(config.grade_set)
    manifest, split = _read_tables(config, grade_set, rejected)
    unlabeled = unlabeled_rows(split, manifest, config.labeled_fraction)
    if graded:
        labeled = labeled_rows(
            split,
            manifest,
            config.labeled_fraction,
            grade_set=grade_set,
            allow_missing_grades=config.allow_missing_grades,
        )
    else:
        labeled = np.setdiff1d(split.rows("train"), unlabeled)
    folder = Path(config.cache) if config.cache else manifest.folder / "cache"
    if config.cache and of_run and not holds_cache(folder):
        log.warning(
            f"note: {folder} holds no cache of images, so that of the run is made in {manifest.folder / 'cache'}"
        )
        folder = manifest.folder / "cache"
    cache = build_cache(
        manifest.paths("image"),
        manifest.paths("mask"),
        folder,
        size=config.image_size,
        percentiles=config.percentiles,
        invert=config.invert,
        mirror=(manifest.table["side"] == config.mirror_side).to_numpy(),
        place=lambda row: f"{manifest.path.name} line {manifest.table['line'].iat[row]}: ",
    )
    refuse_shared_pictures(cache.pictures["digest"], split, manifest.table, where=manifest.path.name)
    return KneeData(
        grade_set=grade_set,
        manifest=manifest,
        split=split,
        cache=cache,
        labeled=labeled,
        unlabeled=unlabeled,
        mask_dilation=config.mask_dilation,
        salt=load_salt(manifest.path, salt_folder),
        percentiles=config.percentiles,
    )


def _read_tables(config: DataConfig, grade_set: GradeSet, rejected: Path | None) -> tuple[Manifest, Split]:
    """Manifest and split with the same rows; with ``data.skip_bad``, without the bad rows."""
    if not config.skip_bad:
        manifest = read_manifest(config.manifest, grade_set)
        return manifest, read_split(config.split, manifest)
    found = check_data(config.manifest, grade_set)
    # The list belongs to the run: every command that opens the run rewrites it.
    manifest = drop_bad(found, rejected if processes.is_first() else None, force=True)
    return manifest, read_split(config.split, found.manifest, without=found.bad_lines)


def describe(data: KneeData, config: DataConfig) -> list[str]:
    """A summary of the data to show before training: numbers of images, grades and masks."""
    counts = np.bincount(data.grades[data.labeled], minlength=data.grade_set.count)
    patients = data.patients.iloc[data.labeled].nunique()
    lines = [
        f"{len(data.manifest.table)} images: {len(data.split.rows('train'))} train, {len(data.split.rows('val'))} val, "
        f"{len(data.split.rows('test'))} test",
        f"labeled: {len(data.labeled)} images of {patients} patients (fraction {config.labeled_fraction:g}), by grade "
        + " ".join(f"{grade}:{count}" for grade, count in enumerate(counts))
        + f"; unlabeled: {len(data.unlabeled)}",
    ]
    lines += _of_validation(data)
    masked = int(data.cache.has_mask[data.labeled].sum())
    lines.append(f"labeled images with a mask: {masked} of {len(data.labeled)}")
    return lines


def _of_validation(data: KneeData) -> list[str]:
    """Why the validation images cannot determine the best checkpoint, if they cannot."""
    rows = data.split.rows("val")
    graded = np.unique(data.grades[rows][data.grades[rows] >= 0])
    metric = data.grade_set.best_metric
    if not len(graded):
        which = "graded validation images" if len(rows) else "validation images"
        return [f"no {which}: nothing is measured during training, and the last checkpoint counts as the best"]
    if len(graded) == 1 and metric in ("auc", "kappa"):
        return [
            f"all graded validation images are of grade {graded[0]}, where {metric} cannot distinguish models, so the best "
            "checkpoint is not reliable; make a new split with other grades in validation"
        ]
    return []


class TrainingBatches:
    """Two-stream batches on the device, starting at any batch of the run, as ``knee.engine.fit`` needs them."""

    def __init__(
        self,
        data: KneeData,
        config: DataConfig,
        views: ViewConfig,
        *,
        rows: Rows,
        unlabeled: Rows,
        dilation: float,
        seed: int,
        device: torch.device,
        channels_last: bool,
        targets: NDArray[np.float32] | None = None,
    ) -> None:
        labeled = LabeledImages(
            data.cache.images,
            rows,
            # The segmenter may train on a mask without a grade; its grade is not used.
            np.maximum(data.grades[rows], 0),
            data.cache.masks,
            data.cache.has_mask,
            dilation=dilation,
        )
        images = data.cache.images
        others = UnlabeledImages(images, unlabeled) if targets is None else TargetImages(images, unlabeled, targets)
        streams = TwoStreams(labeled, others, Views(views, config.image_size), seed=seed)
        refuse_uneven(labeled_per_batch=config.labeled_per_batch, unlabeled_per_batch=config.unlabeled_per_batch)
        slices = None
        if config.slices_per_knee > 1:
            stacks = [stacks_of(data, some) for some in (rows, unlabeled)]
            slices = SlicesOfKnees(*stacks, count=config.slices_per_knee, seed=seed)
        sampler = TwoStreamBatchSampler(
            range(len(slices.stacks["labeled"] if slices else rows)),
            range(len(slices.stacks["unlabeled"] if slices else unlabeled)),
            labeled_per_batch=config.labeled_per_batch,
            unlabeled_per_batch=config.unlabeled_per_batch,
            seed=seed,
        )
        images_a_batch = (config.labeled_per_batch + config.unlabeled_per_batch) * config.slices_per_knee
        # Two views, the mask and the content of each image, one byte a pixel.
        require_shared_memory(4 * images_a_batch * config.image_size**2, config.workers)
        self._loader = train_loader(
            streams, sampler, slices=slices, workers=config.workers, pin_memory=device.type == "cuda"
        )
        self._device = device
        self._channels_last = channels_last
        self.per_epoch = len(sampler)

    def from_batch(self, batch: int) -> Iterator[Batch]:
        """Endless batches, starting at batch number ``batch`` of the run."""
        epoch, within = divmod(batch, self.per_epoch)
        self._loader.load_state_dict({"epoch": epoch, "batch": within})
        while True:
            for found in self._loader:
                yield batch_to(found, self._device, channels_last=self._channels_last)


def refuse_uneven(**options: int) -> None:
    """Raises UserError if the processes cannot get equal parts of a batch; options of ``data`` by name."""
    for name, wanted in options.items():
        if wanted % processes.count():
            raise UserError(
                f"data.{name} is {wanted}, for all processes together; with {processes.count()} give a multiple of it"
            )


def stacks_of(data: KneeData, rows: Rows) -> list[Rows]:
    """The knees that ``rows`` (n,) show: the places in ``rows`` of the slices of each series, in the manifest's order.

    An image that is in no series is a knee of one image.
    """
    return stacks(data.series(rows))


def drawn_rows(data: KneeData, rows: Rows, *, least: int = 0) -> Rows:
    """Those of ``rows`` that have a mask drawn by a person. Raises UserError if there are fewer than ``least``."""
    found: Rows = rows[data.cache.has_mask[rows] & ~data.manifest.by_segmenter[rows]]
    if len(found) < least:
        raise UserError(
            f"{data.manifest.path}: {len(found)} of {len(rows)} rows have a drawn mask, at least {least} are needed; draw some "
            "and name their files in the column mask"
        )
    return found
