"""Training the cartilage segmenter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knee.data.prepare import KneeData, TrainingBatches, drawn_rows, load_knee_data
from knee.engine.checkpoint import Checkpoint
from knee.engine.config import EXTERNAL
from knee.engine.lock import RunLock
from knee.engine.record import record_data
from knee.engine.run import RunFolder
from knee.engine.state import Progress
from knee.engine.training import count_steps, fit, latest_checkpoint, start
from knee.errors import UserError
from knee.images.masks import mask_dice, mask_iou
from knee.io.plain import shown
from knee.nn import processes
from segmentation.config import SegmenterConfig, UnetConfig
from segmentation.predict import Segmented, segment_rows
from segmentation.task import SegmentationTask
from segmentation.unet import Segmenter, build_segmenter, is_external

log = logging.getLogger(__name__)
Rows = NDArray[np.int64]


def train_segmenter(config: SegmenterConfig, run: RunFolder, *, resume: bool, external_model: bool = False) -> Progress:
    """Train the U-Net on the training rows that have a drawn mask, whatever their grade.

    A resumed run may be untrusted: nothing is downloaded for it unless ``external_model``.
    """
    with RunLock(run.path):
        device = start(config.fit)
        rejected = run.local / "rejected.csv"
        data = load_knee_data(config.data, rejected=rejected, salt_folder=run.local, graded=False, of_run=resume)
        batches = training_batches(config, data, device=device)
        steps = count_steps(config.fit, batches.per_epoch)
        checkpoint = latest_checkpoint(run) if resume else None
        if resume and not external_model:
            refuse_external(config.unet)
            if checkpoint is None and config.unet.encoder_weights:
                raise UserError(
                    f"{run.path} has no checkpoint yet, so resuming would download the weights of {config.unet.encoder}; add "
                    f"{EXTERNAL} if you want that, or start a new run"
                )
        if checkpoint is not None:
            checkpoint.refuse_other_network("segmenter", partial(build_segmenter, config.unet.encoder))
        task = build_task(config, data, device=device, fresh=checkpoint is None)
        if checkpoint is None and processes.is_first():
            record_data(run, data)
        return fit(
            task,
            batches,
            run,
            config,
            data,
            device=device,
            steps=steps,
            checkpoint=checkpoint,
            command="dcmt segment train --resume {run}",
            next_command="dcmt segment predict {run} --out FOLDER",
        )


def training_batches(config: SegmenterConfig, data: KneeData, *, device: torch.device) -> TrainingBatches:
    """The training images that have a drawn mask, not dilated. Raises UserError for fewer than two."""
    rows = drawn_rows(data, data.split.rows("train"), least=2)
    held_out = len(drawn_rows(data, data.split.rows("val")))
    log.info(f"{len(rows)} training images have a drawn mask; {held_out} for validation")
    return TrainingBatches(
        data,
        config.data,
        config.views,
        rows=rows,
        unlabeled=np.zeros(0, np.int64),
        dilation=0.0,
        seed=config.fit.seed,
        device=device,
        channels_last=config.fit.channels_last,
    )


def build_task(config: SegmenterConfig, data: KneeData, *, device: torch.device, fresh: bool) -> SegmentationTask:
    """The U-Net of a configuration, validated on the validation rows that have a drawn mask.

    With ``fresh`` false no weights are downloaded, because a checkpoint will be loaded.
    """
    mean, std = data.cache.mean_std(data.split.rows("train"))
    weights = config.unet.encoder_weights if fresh else ""
    segmenter = build_segmenter(config.unet.encoder, encoder_weights=weights, mean=mean, std=std)
    task = SegmentationTask(
        segmenter, dice_weight=config.unet.dice_weight, cross_entropy_weight=config.unet.cross_entropy_weight
    )
    rows = drawn_rows(data, data.split.rows("val"))

    def validation(networks: Mapping[str, Any], step: int) -> Mapping[str, float]:
        found = overlap(networks["segmenter"], data, rows, device=device)
        return {f"val/{name}": value for name, value in found.items()}

    task.validation = validation if len(rows) else None
    return task


def overlap(network: Segmenter, data: KneeData, rows: Rows, *, device: torch.device) -> dict[str, float]:
    """Dice and IoU per image, averaged, of the segmenter's masks and the drawn ones, undilated."""

    def of_batch(found: Segmented) -> NDArray[np.float64]:
        drawn = np.asarray(data.cache.masks[found.rows])
        return np.stack([mask_dice(found.masks, drawn), mask_iou(found.masks, drawn)])

    batches = segment_rows(network, processes.part_of(data.loader(rows)), device=device)
    dice, iou = np.concatenate(list(processes.merged(map(of_batch, batches))), axis=1)
    return {"dice": float(np.nanmean(dice)), "iou": float(np.nanmean(iou))}


def load_segmenter(
    run: RunFolder, config: SegmenterConfig, *, external_model: bool = False
) -> tuple[Segmenter, Checkpoint]:
    """The best segmenter of a run, and its checkpoint. Without ``external_model`` nothing is downloaded for it."""
    if not external_model:
        refuse_external(config.unet)
    checkpoint = run.checkpoints.best()
    if checkpoint is None:
        raise UserError(f"{run.path} has no checkpoint yet")
    return checkpoint.build_network("segmenter", partial(build_segmenter, config.unet.encoder)), checkpoint


def refuse_external(config: UnetConfig) -> None:
    """Raises UserError if the encoder of a run is a model of a hub or a folder, which a run folder must not load."""
    if is_external(config.encoder):
        raise UserError(
            f"unet.encoder of the run is {shown(config.encoder)}, a model of a hub or a folder; run folders are opened without "
            f"downloads and without external code; if you trust the source of the run and of that model, add {EXTERNAL}"
        )
