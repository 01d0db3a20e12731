"""Training the cartilage segmenter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knee.data.prepare import KneeData, drawn_rows, load_knee_data
from knee.engine.checkpoint import Checkpoint
from knee.engine.fit import Progress
from knee.engine.launch import start
from knee.engine.lock import RunLock
from knee.engine.run import RunFolder
from knee.engine.tracking import Tracker
from knee.engine.training import Streams, train
from knee.errors import UserError
from knee.images.masks import mask_dice, mask_iou
from knee.task import Task
from segmentation.config import SegmenterConfig
from segmentation.predict import segment_rows
from segmentation.task import SegmentationTask
from segmentation.unet import Segmenter, build_segmenter

Say = Callable[[str], None]
Rows = NDArray[np.int64]


def train_segmenter(config: SegmenterConfig, run: RunFolder, *, say: Say, resume: bool) -> Progress:
    """Train the U-Net on the training rows that have a drawn mask, whatever their grade."""
    with RunLock(run.path):
        device = start(config.fit.seed, config.fit.threads, config.fit.device, deterministic=config.fit.deterministic)
        data = load_knee_data(config.data, rejected=run.local / "rejected.csv", salt_folder=run.local, graded=False)
        kind = SegmenterRun(config, data)
        held_out = len(drawn_rows(data, data.split.rows("val")))
        say(f"{len(kind.streams.labeled)} training images have a drawn mask; {held_out} for validation")
        return train(config, run, data, kind, device=device, say=say, resume=resume)


class SegmenterRun:
    """A ``knee.engine.training.Kind``: the U-Net, on the training rows that have a drawn mask."""

    command = "dcmt segment train"
    next = "dcmt segment predict {run} --out FOLDER"

    def __init__(self, config: SegmenterConfig, data: KneeData) -> None:
        self.config = config
        self.data = data
        rows = drawn_rows(data, data.split.rows("train"), least=2)
        self.streams = Streams(rows, np.zeros(0, np.int64), dilation=0.0)

    def task(self, *, steps: int, device: torch.device, checkpoint: Checkpoint | None) -> SegmentationTask:
        """The U-Net and its losses."""
        return build_task(self.config, self.data, device=device, fresh=checkpoint is None)

    def ready(self, task: Task, *, precision: str, device: torch.device, tracker: Tracker) -> None:
        """Nothing more is needed."""

    def state(self, checkpoint: Checkpoint | None) -> Mapping[str, Any]:
        """Nothing more to say."""
        return {}


def build_task(config: SegmenterConfig, data: KneeData, *, device: torch.device, fresh: bool) -> SegmentationTask:
    """The U-Net of a config, validated on the validation rows that have a drawn mask.

    ``fresh`` false builds it for a checkpoint to fill: no weights are fetched.
    """
    mean, std = data.cache.mean_std(data.split.rows("train"))
    weights = config.unet.encoder_weights if fresh else ""
    segmenter = build_segmenter(config.unet.encoder, encoder_weights=weights, mean=mean, std=std)
    rows = drawn_rows(data, data.split.rows("val"))

    def validate(network: Segmenter) -> Mapping[str, float]:
        return {f"val/{name}": value for name, value in overlap(network, data, rows, device=device).items()}

    return SegmentationTask(
        segmenter,
        dice_weight=config.unet.dice_weight,
        cross_entropy_weight=config.unet.cross_entropy_weight,
        validate=validate if len(rows) else None,
    )


def overlap(network: Segmenter, data: KneeData, rows: Rows, *, device: torch.device) -> dict[str, float]:
    """Dice and IoU per image, averaged, of the segmenter's masks and the drawn ones, undilated."""
    dice: list[NDArray[np.float64]] = []
    iou: list[NDArray[np.float64]] = []
    for found in segment_rows(network, data.loader(rows), device=device):
        drawn = np.asarray(data.cache.masks[found.rows])
        dice.append(mask_dice(found.masks, drawn))
        iou.append(mask_iou(found.masks, drawn))
    return {"dice": float(np.nanmean(np.concatenate(dice))), "iou": float(np.nanmean(np.concatenate(iou)))}


def load_segmenter(run: RunFolder, config: SegmenterConfig) -> tuple[Segmenter, Checkpoint]:
    """The best segmenter of a run, and where it comes from."""
    checkpoint = run.checkpoints.best()
    if checkpoint is None:
        raise UserError(f"{run.path} has no checkpoint yet")
    segmenter = build_segmenter(config.unet.encoder)
    checkpoint.load_network("segmenter", segmenter)
    return segmenter, checkpoint
