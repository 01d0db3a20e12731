"""``dcmt segment train|predict``: train the cartilage segmenter, and write masks with it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knee.data.config import DataConfig
from knee.data.manifest import write_manifest
from knee.data.prepare import KneeData, drawn_rows, load_knee_data
from knee.engine.config import EXTERNAL, EXTERNAL_HELP
from knee.engine.device import choose_device, flush_denormals
from knee.engine.launch import new_or_resumed
from knee.engine.options import asks_for_help, config_from_values, train_help
from knee.engine.run import open_run, other_split, removed_unless_begun, require_paths
from knee.errors import UserError
from knee.io.files import refuse_existing
from knee.nn import processes
from segmentation.config import SegmenterConfig
from segmentation.predict import segment_rows, write_masks
from segmentation.train import load_segmenter, overlap, train_segmenter
from segmentation.unet import Segmenter

log = logging.getLogger(__name__)


def train_command(arguments: Sequence[str]) -> int:
    """``dcmt segment train``."""
    if asks_for_help(arguments):
        log.info(train_help(SegmenterConfig, program="dcmt segment train", more=EXTERNAL_HELP, by_grades=False))
        return 0
    rest = [argument for argument in arguments if argument != EXTERNAL]
    with processes.joined():
        config, run, resume = new_or_resumed(
            SegmenterConfig, rest, kind="segmenter", program="dcmt segment train", by_grades=False
        )
        with removed_unless_begun(run, new=not resume):
            train_segmenter(config, run, resume=resume, external_model=EXTERNAL in arguments)
    return 0


def predict_command(options: argparse.Namespace) -> int:
    """``dcmt segment predict``: write masks for the rows without one, and a manifest with the masks."""
    run, values = open_run(options.run)
    if values.pop("kind") != "segmenter":
        raise UserError(f"{options.run} is not a segmenter's run; train one with: dcmt segment train")
    config: SegmenterConfig = config_from_values(SegmenterConfig, values, where=str(run.config))
    given: dict[str, Any] = {name: str(path) for name in ("manifest", "split") if (path := getattr(options, name))}
    require_paths(run, config, *(f"data.{name}" for name in ("manifest", "split", "grade_set") if name not in given))
    data_config: DataConfig = dataclasses.replace(config.data, **given)
    target = options.manifest_out or Path(data_config.manifest).with_name("manifest_masks.csv")
    processes.first_decides(refuse_existing, target, force=options.force)
    flush_denormals()
    device = choose_device(options.device)
    rejected = run.local / "rejected.csv"
    data = load_knee_data(data_config, rejected=rejected, salt_folder=run.local, graded=False, of_run=True)
    network, checkpoint = load_segmenter(run, config, external_model=options.external_model)
    network.to(device)
    if other_split(checkpoint.state, data.split.path):
        about = "is not the split with which" if options.split else "changed since"
        log.info(
            f"{data.split.path} {about} the segmenter was trained, so its overlap with the drawn masks of test is not "
            "reported: it may have been trained on them"
        )
    else:
        report_drawn(network, data, device=device)
    rows = data.split.rows("train") if options.rows == "train" else np.arange(len(data.manifest.table))
    rows = rows[~data.cache.has_mask[rows]]
    table = write_masks(
        segment_rows(network, processes.part_of(data.loader(rows)), device=device, progress=True, total=len(rows)),
        data.manifest,
        data.cache.geometry,
        folder=options.out,
        relative_to=target.parent,
        dilation=options.dilation,
        force=options.force,
    )
    if not processes.is_first():
        return 0
    write_manifest(target, table, force=options.force)
    confidence = table["mask_confidence"].iloc[rows].astype(float)
    sure = (
        f"; mean confidence {confidence.mean():.3f}, lowest {confidence.min():.3f}"
        if len(rows)
        else ", since all rows have one"
    )
    log.info(f"{len(rows)} masks written to {options.out}{sure}")
    log.info(f"manifest with the masks: {target}")
    return 0


def report_drawn(network: Segmenter, data: KneeData, *, device: torch.device) -> None:
    """Log the segmenter's overlap with the drawn masks of validation and test."""
    for split in ("val", "test"):
        rows = drawn_rows(data, data.split.rows(split))
        if len(rows):
            found = overlap(network, data, rows, device=device)
            log.info(f"{split}: Dice {found['dice']:.3f}, IoU {found['iou']:.3f} per image on {len(rows)} drawn masks")
