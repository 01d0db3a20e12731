"""A trained run opened again: its networks, its data, and what they say of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clip_koa.model import ClipGrader
from clip_koa.probe import blank_probe
from dcmt.config import GraderConfig
from dcmt.train import build_grader, refuse_external
from knee.data.prepare import KneeData, load_knee_data
from knee.engine.checkpoint import Checkpoint
from knee.engine.device import autocast_type, choose_device, flush_denormals
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, file_hash, is_trained, open_run, other_split, require_paths
from knee.errors import UserError
from knee.evaluation.predictions import Predictions, predict
from knee.grades import GradeSet, load_grade_set
from knee.nn.flips import MirroredPair

log = logging.getLogger(__name__)
Rows = NDArray[np.int64]
GRID_MASKS = 128
"""How many masks, at most, the best IoU that the attention's grid can reach is climbed to on."""
KINDS = ("grader", "zeroshot", "probe")
"""The kinds of run that grade: trained by ``dcmt train``, or of weights that were not trained for it."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained run: its config and its networks in eval mode on the device."""

    run: RunFolder
    kind: str
    """One of ``KINDS``."""
    config: GraderConfig
    checkpoint: Checkpoint
    grade_set: GradeSet
    networks: Mapping[str, nn.Module]
    """Student and teacher; a run that trained no pair has its one network as the teacher."""
    device: torch.device
    mirrored_pair: bool = False
    """The networks answer with the mean for an image and its mirror image (`MirroredPair`)."""

    @property
    def precision(self) -> torch.dtype | None:
        """The autocast type the run was trained with."""
        return autocast_type(self.checkpoint.precision)

    @property
    def asked(self) -> dict[str, Any]:
        """How its networks are asked, wherever they are: options of ``knee.evaluation.predictions.predict`` and its like."""
        attention = self.config.attention
        return {
            "device": self.device,
            "precision": self.precision,
            "sharpness": attention.sharpness,
            "threshold": attention.threshold,
        }


def load_run(
    path: Path, *, checkpoint: str | int, device: str, mirrored_pair: bool = False, external_model: bool = False
) -> LoadedRun:
    """Open a grader's run folder. Raises UserError where it is none, or has no checkpoint.

    The folder may be a stranger's: nothing is fetched and no code in it or elsewhere is loaded. ``external_model`` lets its
    config name a model of a hub or of a folder.

    ``checkpoint`` is "best", "last" or a step. With ``mirrored_pair`` its networks are asked about an image and its mirror
    image, and answer with the mean.
    """
    flush_denormals()
    run, values = open_run(path)
    kind = values.pop("kind")
    if kind not in KINDS:
        raise UserError(f"{path} is a run of kind {kind:.80}; this command needs a grader's run")
    config: GraderConfig = config_from_values(GraderConfig, values, where=str(run.config))
    if not external_model:
        refuse_external(config)
    if mirrored_pair and kind == "grader" and not _sees_mirror_images(config):
        log.warning(
            f"note: {path} was trained without mirror images (views.horizontal_flip 0), so --mirrored-pair asks about "
            "images of a kind that it never saw"
        )
    if checkpoint == "best":
        found = run.checkpoints.best()
    elif isinstance(checkpoint, int):
        found = run.checkpoints.of_step(checkpoint)
    else:
        found, damaged = run.checkpoints.latest()
        for fault in damaged:
            log.warning(f"warning: {fault}; taking the checkpoint before it")
    if found is None:
        raise UserError(f"{path} has no whole checkpoint yet; train it first: python train.py --resume {path}")
    require_paths(run, config, "data.grade_set")
    grade_set = load_grade_set(config.data.grade_set)
    chosen = choose_device(device)
    networks: dict[str, nn.Module] = {}
    for name in ("student", "teacher"):
        if f"{name}.safetensors" not in found.state["sha256"]:
            continue
        network = build_grader(config, grade_set, fresh=False)
        if kind == "probe":
            network = blank_probe(network, grade_set)
        found.load_network(name, network)
        if isinstance(network, ClipGrader):
            network.freeze_text()
        network = network.to(chosen).eval()
        networks[name] = MirroredPair(network) if mirrored_pair else network
    if "teacher" not in networks:
        raise UserError(f"{found.folder} holds no teacher; train the run again, or put its own checkpoint back")
    return LoadedRun(run, kind, config, found, grade_set, networks, chosen, mirrored_pair)


def _sees_mirror_images(config: GraderConfig) -> bool:
    """Whether training shows the networks images and mirror images."""
    return bool(config.views.horizontal_flip or config.loss.symmetry or config.loss.flip_consistency)


def load_data(loaded: LoadedRun) -> KneeData:
    """The data a run was trained on, by the paths in its config.

    Refuses another split than the one trained with: its test images may have been trained on.
    """
    require_paths(loaded.run, loaded.config, "data.manifest", "data.split")
    data = load_knee_data(
        loaded.config.data,
        rejected=loaded.run.local / "rejected.csv",
        salt_folder=loaded.run.local,
        graded=is_trained(loaded.kind),
    )
    if other_split(loaded.checkpoint.state, data.split.path):
        raise UserError(
            f"{data.split.path} changed since {loaded.run.path} was trained, so its images may have been trained on; the split "
            f"it was trained with is {loaded.run.local / 'split.csv'}: put that back"
        )
    if manifest_changed(loaded, data):
        log.warning(
            f"note: {data.manifest.path} changed since {loaded.run.path} was trained; its rows count as they are now"
        )
    return data


def manifest_changed(loaded: LoadedRun, data: KneeData) -> bool:
    """Whether the manifest is not the one that the run was trained on, which may be meant: grades are corrected."""
    trained_with = loaded.checkpoint.state.get("manifest_sha256")
    return trained_with is not None and trained_with != file_hash(data.manifest.path)


def grade_rows(
    loaded: LoadedRun, data: KneeData, rows: Rows, *, flip: bool = False, names: Sequence[str] = ("student", "teacher")
) -> dict[str, Predictions]:
    """What each network of those named says of the rows, with the overlap of its attention and the masks."""
    return {
        name: predict(
            network,
            data.loader(rows),
            masks=data.masks,
            has_mask=data.cache.has_mask,
            flip=flip,
            **loaded.asked,
        )
        for name, network in loaded.networks.items()
        if name in names
    }


def refuse_trained_images(run: Path, kind: str, split: str, *, allowed: bool) -> None:
    """Raises UserError where a network would be judged by images that it was trained on, unless that is asked for."""
    if split == "train" and is_trained(kind) and not allowed:
        raise UserError(
            f"{run} was trained on the images of --split train (on unlabeled ones too), so how it grades them says "
            "how well it remembers, not how good it is; evaluate --split val or test, or add --trained-on to see it anyway"
        )


def best_reachable(loaded: LoadedRun, data: KneeData, rows: Rows) -> float | None:
    """The mean of the best IoU that the attention's grid could reach on the masks of ``rows``; None without masks.

    Of more than ``GRID_MASKS`` masks, those at equal distances are looked at.
    """
    from knee.evaluation.report import best_grid_iou

    rows = rows[data.cache.has_mask[rows]]
    if not len(rows):
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(GRID_MASKS, len(rows))).round().astype(int)]
    size = loaded.config.data.image_size
    with torch.no_grad():
        maps = loaded.networks["teacher"](torch.zeros(1, 1, size, size, device=loaded.device)).class_maps
    return round(float(np.nanmean(best_grid_iou(data.masks[rows], (maps.shape[2], maps.shape[3])))), 4)


def masks_by_segmenter(data: KneeData, rows: Rows) -> int:
    """How many of ``rows`` have a mask that no person drew."""
    return int((data.cache.has_mask[rows] & data.manifest.by_segmenter[rows]).sum())
