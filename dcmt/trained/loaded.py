"""Open a run for inference: its networks, its data and its predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from clip_koa.model import ClipGrader
from clip_koa.probe import blank_probe
from dcmt.config import GraderConfig
from dcmt.train import build_grader, refuse_external
from dcmt.trained.reference import Image, Marks, Reference, for_inference, is_of, measure, mode, open_reference, store
from knee.data.prepare import KneeData, load_knee_data
from knee.engine.checkpoint import Checkpoint
from knee.engine.device import autocast_type, choose_device, flush_denormals
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, file_hash, is_trained, open_run, other_split, require_paths
from knee.engine.training import place
from knee.errors import UserError
from knee.evaluation.predictions import Predictions, predict
from knee.grades import GradeSet, load_grade_set
from knee.nn import processes
from knee.nn.prior import PriorCorrected

log = logging.getLogger(__name__)
Rows = NDArray[np.int64]
GRID_MASKS = 128
"""Maximum number of masks on which ``best_reachable`` is computed."""
KINDS = ("grader", "zeroshot", "probe", "image_text")
"""The kinds of run of a grader: trained by ``dcmt train``, zero-shot, a linear probe, or that in a joint run."""
_OF_THE_GRADER = ("name", "runs", "data", "views", "model", "teacher", "optimizer", "fit", "report")
"""The sections of a joint run's config that a grader's config has, too."""


@dataclass(frozen=True)
class LoadedRun:
    """A run opened for inference: its config, and its networks in eval mode on the device."""

    run: RunFolder
    kind: str
    """One of ``KINDS``."""
    config: GraderConfig
    checkpoint: Checkpoint
    grade_set: GradeSet
    networks: Mapping[str, nn.Module]
    """Student and teacher as used for predictions: with flip TTA, if requested, and calibrated by their temperatures.

    Zero-shot and probe runs have only a teacher."""
    bare: Mapping[str, nn.Module]
    """The same without flip TTA and temperatures."""
    device: torch.device
    flip_tta: bool = False
    """Predictions are averaged over an image and its horizontal flip (`FlipAveraged`)."""
    prior_corrected: bool = False
    """Predictions are corrected for the distribution of the training labels (`PriorCorrected`)."""
    reference: Reference | None = None
    """Temperatures, and what the training images are like; None if not measured (``dcmt evaluate`` does it)."""

    @property
    def temperatures(self) -> Mapping[str, float]:
        """The temperatures by network and mode (``dcmt.trained.reference.mode``); empty if they were not measured."""
        return self.reference.temperatures if self.reference else {}

    def temperature(self, network: str) -> float | None:
        """The temperature of a network's predictions; None if it was not measured, so that 1 is used."""
        return self.temperatures.get(mode(network, flip_tta=self.flip_tta))

    @property
    def precision(self) -> torch.dtype | None:
        """The autocast type with which the run was trained."""
        return autocast_type(self.checkpoint.precision)

    @property
    def inference(self) -> dict[str, Any]:
        """Options to run its networks with, for ``predict`` and ``iterate_attention`` of ``knee.evaluation.predictions``."""
        attention = self.config.attention
        return {
            "device": self.device,
            "precision": self.precision,
            "sharpness": attention.sharpness,
            "threshold": attention.threshold,
            "decision": self.grade_set.decision,
        }

    @property
    def grades_knees(self) -> bool:
        """Whether the pooled predictions of a knee's slices were trained, so that they grade it (``data.slices_per_knee``)."""
        return self.config.data.slices_per_knee > 1

    @property
    def pools_severest(self) -> bool:
        """Whether a volume is graded by its most severe slices: trained so, or chosen on the validation knees."""
        return self.grades_knees or (self.reference is not None and self.reference.severest)

    def marks(self, images: Sequence[Image]) -> Marks | None:
        """How familiar prepared images are; None if the run has no reference."""
        if self.reference is None:
            return None
        return self.reference.marks(images, self.bare["teacher"], device=self.device, precision=self.precision)

    def predict(
        self,
        paths: Iterable[str | Path],
        *,
        attention: bool = False,
        network: str = "teacher",
        grade_anyway: bool = False,
    ) -> pd.DataFrame:
        """Grade image files: a table with image, side, grade, name, one probability column for each grade, and familiarity.

        Images unlike the training images get no grade but a ``reason``, unless ``grade_anyway``. With ``attention`` also the
        map of the predicted grade on each file's own pixels, (H, W) in [0, 1]. Raises UserError if a file cannot be read; see
        ``dcmt.trained.prediction.predict_images``.
        """
        from dcmt.trained.prediction import predict_images  # not needed to open a run

        return predict_images(self, paths, attention=attention, network=network, grade_anyway=grade_anyway)


def load_run(
    path: Path, *, checkpoint: str | int, device: str, flip_tta: bool = False, external_model: bool = False
) -> LoadedRun:
    """Open a grader's run folder. Raises UserError if it is not one, or has no checkpoint.

    The folder may be untrusted: nothing is downloaded and no code is loaded. ``external_model`` allows its config to name a
    model of a hub or of another folder.

    ``checkpoint`` is "best", "last" or a step. With ``flip_tta`` predictions are averaged over an image and its
    horizontal flip.
    """
    flush_denormals()
    run, values = open_run(path)
    kind = values.pop("kind")
    if kind not in KINDS:
        raise UserError(f"{path} is a run of kind {kind:.80}; this command needs a grader's run")
    if kind == "image_text":
        values = image_grader_values(values, where=str(path))
    config: GraderConfig = config_from_values(GraderConfig, values, where=str(run.config))
    if not external_model:
        refuse_external(config)
    if flip_tta and kind == "grader" and not trains_on_flips(config):
        log.warning(
            f"note: {path} was trained without horizontal flips (views.horizontal_flip 0), so flipped images, as used by "
            "--flip-tta, are outside its training distribution"
        )
    found = _checkpoint_of(run, checkpoint)
    require_paths(run, config, "data.grade_set")
    grade_set = load_grade_set(config.data.grade_set)
    chosen = choose_device(device)

    def build() -> nn.Module:
        network = build_grader(config, grade_set, fresh=False)
        # A probe of an image-text run is a grading network whose classifier was fitted.
        return blank_probe(network, grade_set) if kind == "probe" and not config.model.start else network

    bare: dict[str, nn.Module] = {}
    for name in ("student", "teacher"):
        if f"{name}.safetensors" not in found.state["sha256"]:
            continue
        if kind == "image_text":  # its encoder is a part of what was saved
            network = build()
            load_image_grader(network, found, name)
        else:
            network = found.build_network(name, build)
        if isinstance(network, ClipGrader):
            network.freeze_text()
        bare[name] = network.eval()
    place(bare, chosen, channels_last=config.fit.channels_last)
    if "teacher" not in bare:
        raise UserError(f"{found.folder} has no teacher; train the run again, or restore its own checkpoint")
    reference = open_reference(found)
    networks = for_inference(bare, reference.temperatures if reference else {}, flip_tta=flip_tta)
    return LoadedRun(run, kind, config, found, grade_set, networks, bare, chosen, flip_tta, reference=reference)


def image_grader_values(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A joint run's config (plain values) as that of the grader in it, which sees the image alone.

    Raises UserError for a run that was trained on pairs without grades.
    """
    if values.get("method") != "beyond_clip":
        raise UserError(
            f"{where} was trained on images and reports without grades, so it has no grader; train one from it with "
            f"--model.start {where}"
        )
    found = {name: values[name] for name in _OF_THE_GRADER if name in values}
    if isinstance(found.get("data"), dict):
        found["data"] = {**found["data"], "allow_missing_grades": True}  # a joint run trains with any grades, or none
    return found


def load_image_grader(network: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load the image encoder and classifier of a joint model, in place. Raises UserError where they do not fit."""
    tensors = checkpoint.tensors(name)
    state = {key.removeprefix("image."): value for key, value in tensors.items() if key.startswith("image.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.folder / name}.safetensors does not fit the network of this run's config; was the config changed "
            "since?"
        ) from error


def _checkpoint_of(run: RunFolder, wanted: str | int) -> Checkpoint:
    """The checkpoint "best", "last" or of a step. Raises UserError where there is none."""
    if wanted == "best":
        found = run.checkpoints.best()
    elif isinstance(wanted, int):
        found = run.checkpoints.of_step(wanted)
    else:
        found, damaged = run.checkpoints.latest()
        for error in damaged:
            log.warning(f"warning: {error}; using the checkpoint before it")
    if found is None:
        raise UserError(f"{run.path} has no checkpoint yet; train it first: python train.py --resume {run.path}")
    return found


def trains_on_flips(config: GraderConfig) -> bool:
    """Whether the networks are trained on images and their horizontal flips."""
    return bool(config.views.horizontal_flip or config.loss.symmetry or config.loss.flip_consistency)


def load_data(loaded: LoadedRun) -> KneeData:
    """The data on which a run was trained, by the paths in its config.

    Raises UserError if the split file changed since, because its test images may then have been trained on.
    """
    require_paths(loaded.run, loaded.config, "data.manifest", "data.split")
    data = load_knee_data(
        loaded.config.data,
        rejected=loaded.run.local / "rejected.csv",
        salt_folder=loaded.run.local,
        graded=is_trained(loaded.kind),
        of_run=True,
    )
    if other_split(loaded.checkpoint.state, data.split.path):
        raise UserError(
            f"{data.split.path} changed since {loaded.run.path} was trained, so its images may have been trained on; restore "
            f"the split of the run, a copy of which is {loaded.run.local / 'split.csv'}"
        )
    if manifest_changed(loaded, data):
        log.warning(
            f"note: {data.manifest.path} changed since {loaded.run.path} was trained; its current rows are used"
        )
    return data


def with_prior_correction(loaded: LoadedRun, data: KneeData) -> LoadedRun:
    """The run with predictions corrected for the distribution of its labels. Raises UserError for a run without training."""
    if not is_trained(loaded.kind):
        raise UserError(
            f"{loaded.run.path} was not trained on labels, so there is no prior; leave out --prior-correction"
        )
    counts = torch.from_numpy(np.bincount(data.grades[data.labeled], minlength=loaded.grade_set.count))
    networks = {name: PriorCorrected(one, counts).to(loaded.device).eval() for name, one in loaded.networks.items()}
    return replace(loaded, networks=networks, prior_corrected=True)


def with_reference(loaded: LoadedRun, data: KneeData) -> LoadedRun:
    """The run with its reference, which is measured and stored if there is none for this checkpoint and manifest."""
    if loaded.reference is not None and is_of(loaded.checkpoint, data):
        return loaded
    found = measure(loaded.bare, data, device=loaded.device, precision=loaded.precision, knees=loaded.grades_knees)
    if processes.is_first():
        store(found, loaded.checkpoint, data)
    networks = for_inference(loaded.bare, found.temperatures, flip_tta=loaded.flip_tta)
    return replace(loaded, reference=found, networks=networks)


def row_marks(loaded: LoadedRun, data: KneeData, rows: Rows) -> Marks | None:
    """How familiar the images of ``rows`` are; None if the run has no reference."""
    return loaded.marks([Image(data.cache.images[row], data.cache.geometry(row)) for row in rows])


def manifest_changed(loaded: LoadedRun, data: KneeData) -> bool:
    """Whether the manifest changed since the run was trained, which may be intended, as when grades were corrected."""
    trained_with = loaded.checkpoint.state.get("manifest_sha256")
    return trained_with is not None and trained_with != file_hash(data.manifest.path)


def grade_rows(
    loaded: LoadedRun, data: KneeData, rows: Rows, *, flip: bool = False, names: Sequence[str] = ("student", "teacher")
) -> dict[str, Predictions]:
    """The predictions of each named network for the rows, with the IoU of its attention and the masks."""
    return {
        name: predict(
            network,
            data.loader(rows),
            masks=data.masks,
            has_mask=data.cache.has_mask,
            flip=flip,
            **loaded.inference,
        )
        for name, network in loaded.networks.items()
        if name in names
    }


def refuse_trained_images(run: Path, kind: str, split: str, *, allowed: bool) -> None:
    """Raises UserError if a network would be evaluated on its training images, unless ``allowed``."""
    if split == "train" and is_trained(kind) and not allowed:
        raise UserError(
            f"{run} was trained on the images of --split train (including unlabeled ones), so metrics on them would be too "
            "optimistic; evaluate --split val or test, or add --trained-on to evaluate training images anyway"
        )


def best_reachable(loaded: LoadedRun, data: KneeData, rows: Rows) -> float | None:
    """The mean best IoU that attention on the network's grid can reach on the masks of ``rows``; None without masks.

    Of more than ``GRID_MASKS`` masks, an evenly spaced subset is used.
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
    """The number of ``rows`` whose mask was predicted by a segmenter."""
    return int((data.cache.has_mask[rows] & data.manifest.by_segmenter[rows]).sum())
