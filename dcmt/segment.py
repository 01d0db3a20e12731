"""Training the cartilage segmenter, and writing its masks: ``dcmt segment train|predict``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcmt.checkpoint import Checkpoint
from dcmt.config import DataConfig, SegmenterConfig
from dcmt.device import choose_device, flush_denormals
from dcmt.fit import Progress
from dcmt.launch import new_or_resumed, start
from dcmt.lock import RunLock
from dcmt.options import config_from_values
from dcmt.prepare import KneeData, drawn_rows, load_knee_data
from dcmt.run import RunFolder, earlier_until_begun, open_run, other_split, require_paths
from dcmt.tracking import Tracker
from dcmt.training import Streams, train
from knee.errors import UserError
from knee.files import refuse_existing
from knee.manifest import write_manifest
from knee.masks import mask_dice, mask_iou
from knee.task import Task
from segmentation.predict import segment_rows, write_masks
from segmentation.task import SegmentationTask
from segmentation.unet import Segmenter, build_segmenter

Say = Callable[[str], None]
Rows = NDArray[np.int64]


def train_command(arguments: Sequence[str], *, say: Say) -> int:
    """``dcmt segment train``."""
    config, run, resume = new_or_resumed(
        SegmenterConfig, arguments, kind="segmenter", program="dcmt segment train", by_grades=False
    )
    with earlier_until_begun(run):
        train_segmenter(config, run, say=say, resume=resume)
    return 0


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
    """A ``dcmt.training.Kind``: the U-Net, on the training rows that have a drawn mask."""

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


def predict_command(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt segment predict``: masks for the rows that have none, and a manifest that names them."""
    run, values = open_run(options.run)
    if values.pop("kind") != "segmenter":
        raise UserError(f"{options.run} is not the run of a segmenter; train one by: dcmt segment train")
    config: SegmenterConfig = config_from_values(SegmenterConfig, values, where=str(run.config))
    require_paths(run, config, "data.split", "data.grade_set", *([] if options.manifest else ["data.manifest"]))
    data_config: DataConfig = config.data
    if options.manifest:
        data_config = dataclasses.replace(config.data, manifest=str(options.manifest))
    target = options.manifest_out or Path(data_config.manifest).with_name("manifest_masks.csv")
    refuse_existing(target, force=options.force)
    flush_denormals()
    device = choose_device(options.device)
    data = load_knee_data(data_config, rejected=run.local / "rejected.csv", salt_folder=run.local, graded=False)
    network, checkpoint = load_segmenter(run, config)
    network.to(device)
    if other_split(checkpoint.state, data.split.path):
        say(
            f"{data.split.path} changed since the segmenter was trained, so how it finds the drawn masks of test is not told: "
            "it may have been trained on them"
        )
    else:
        report_drawn(network, data, device=device, say=say)
    rows = data.split.rows("train") if options.rows == "train" else np.arange(len(data.manifest.table))
    rows = rows[~data.cache.has_mask[rows]]
    table = write_masks(
        segment_rows(network, data.loader(rows), device=device, progress=True, total=len(rows)),
        data.manifest,
        data.cache.geometry,
        folder=options.out,
        relative_to=target.parent,
        dilation=options.dilation,
        force=options.force,
    )
    write_manifest(target, table, force=options.force)
    confidence = table["mask_confidence"].iloc[rows].astype(float)
    sure = (
        f"; mean confidence {confidence.mean():.3f}, lowest {confidence.min():.3f}"
        if len(rows)
        else ", all rows have one"
    )
    say(f"{len(rows)} masks written to {options.out}{sure}")
    say(f"the manifest that names them: {target}")
    return 0


def report_drawn(network: Segmenter, data: KneeData, *, device: torch.device, say: Say) -> None:
    """Say how well the segmenter finds the drawn masks of validation and test."""
    for split in ("val", "test"):
        rows = drawn_rows(data, data.split.rows(split))
        if len(rows):
            found = overlap(network, data, rows, device=device)
            say(f"{split}: Dice {found['dice']:.3f}, IoU {found['iou']:.3f} per image on {len(rows)} drawn masks")
