"""What a checkpoint needs to know about its own data: temperatures, and what the training images are like.

Both are measured on the training and validation images when training ends, or by ``dcmt evaluate``, and are stored in the
checkpoint's folder: ``reference.json`` and ``reference.safetensors``. They are removed together with the checkpoint, name the
checksum of its teacher, and are measured again by ``dcmt evaluate`` if the manifest has changed, so they cannot become stale.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn

from dcmt.onnx.reader import unlike_reason
from knee.data.prepare import KneeData
from knee.engine.checkpoint import Checkpoint
from knee.engine.run import file_hash
from knee.errors import UserError
from knee.evaluation.by_knee import knee_grades, knee_predictions
from knee.evaluation.familiarity import Familiarity, features, fit_familiarity
from knee.evaluation.predictions import Predictions, predict
from knee.images.dicom import read_modality
from knee.images.geometry import Geometry
from knee.images.slices import split_slice
from knee.io.files import moved_into_place, write_json
from knee.io.plain import read_json, shown
from knee.nn import processes
from knee.nn.flips import FlipAveraged
from knee.nn.padding import as_input
from knee.nn.temperature import RANGE, Tempered, fit_temperature

log = logging.getLogger(__name__)

_MOST_IMAGES = 2500
_LEAST_GRADED = 30
"""With fewer graded validation images no temperature is fitted: it would follow chance."""
_MOST_HEADERS = 256
_MOST_BYTES = 1 << 27
_MOST_FEATURES = 4096
_MOST_MODALITIES = 20
_ARRAYS = ("center", "whitening", "means", "distances")
Bytes = NDArray[np.uint8]


class Image(NamedTuple):
    """A prepared image, and what is known about its file."""

    square: Bytes
    """(S, S)."""
    geometry: Geometry
    modality: str = ""


class Marks(NamedTuple):
    """How familiar some images are."""

    familiarity: NDArray[np.float64]
    """(N,): the share of validation images that are at least as unlike the training images; NaN if not measured."""
    reasons: list[str]
    """Why each image is unlike the training images; empty if it is not."""


@dataclass(frozen=True)
class Reference:
    """Temperatures of a checkpoint's networks, and what its training images are like."""

    temperatures: Mapping[str, float]
    """By network, with ``_flip_tta`` for predictions with flip TTA; empty with fewer than 30 graded validation images."""
    familiarity: Familiarity | None
    """None without training or validation images."""
    modalities: tuple[str, ...]
    """Modalities of the training images, as far as their files give them."""
    severest: bool = False
    """Whether a volume is graded by its most severe slices, not by the mean of all: whichever suits the validation knees."""

    def marks(
        self, images: Sequence[Image], teacher: nn.Module, *, device: torch.device, precision: torch.dtype | None
    ) -> Marks:
        """The familiarity of images; ``teacher`` is the network without temperature and flip TTA."""
        distances = np.full(len(images), np.nan)
        if self.familiarity is not None and images:
            squares = [image.square for image in images]
            distances = self.familiarity.distance(features_of(teacher, squares, device=device, precision=precision))
        reasons = [self._reason(image, distance) for image, distance in zip(images, distances, strict=True)]
        return Marks(distances if self.familiarity is None else self.familiarity.share(distances), reasons)

    def _reason(self, image: Image, distance: float) -> str:
        farthest = None if self.familiarity is None else self.familiarity.threshold
        return unlike_reason(image.modality, distance, modalities=self.modalities, farthest=farthest)


def mode(network: str, *, flip_tta: bool) -> str:
    """The name of a network's temperature."""
    return f"{network}_flip_tta" if flip_tta else network


def for_inference(
    bare: Mapping[str, nn.Module], temperatures: Mapping[str, float], *, flip_tta: bool
) -> dict[str, nn.Module]:
    """The networks with flip TTA, if requested, and with their temperatures (1 where there is none)."""
    found: dict[str, nn.Module] = {}
    for name, network in bare.items():
        temperature = temperatures.get(mode(name, flip_tta=flip_tta), 1.0)
        averaged = FlipAveraged(network) if flip_tta else network
        found[name] = averaged if temperature == 1 else Tempered(averaged, temperature)
    return found


def features_of(
    network: nn.Module, images: Sequence[Bytes], *, device: torch.device, precision: torch.dtype | None, batch: int = 64
) -> NDArray[np.float32]:
    """The features (N, D) of N prepared images (S, S), from which their familiarity follows; several processes share them."""

    def of_batch(start: int) -> NDArray[np.float32]:
        some = as_input(torch.from_numpy(np.stack(images[start : start + batch])).to(device)[:, None])
        with torch.no_grad(), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            pooled = network.pooled(some)  # type: ignore[operator]
        return features(pooled, some)

    starts = range(0, len(images), batch)
    return np.concatenate(list(processes.merged(map(of_batch, processes.part_of(starts)))))


def measure(
    bare: Mapping[str, nn.Module],
    data: KneeData,
    *,
    device: torch.device,
    precision: torch.dtype | None,
    knees: bool = False,
) -> Reference:
    """Fit the temperatures on the graded validation images, and describe the training images by at most 2,500 of them.

    With ``knees`` the temperatures are those of knees, graded by their pooled slices.
    """
    training, validation = data.rows("train"), data.rows("val")
    training = training[_spread(len(training), _MOST_IMAGES)]
    temperatures, familiarity, severest = {}, None, knees
    graded = validation[data.grades[validation] >= 0]
    options: dict[str, Any] = {"device": device, "precision": precision}
    count = len(knee_grades(data.grades[graded], data.series(graded))) if knees else len(graded)
    if count < _LEAST_GRADED:
        what = "knees" if knees else "images"
        log.info(f"{count} graded validation {what}, fewer than {_LEAST_GRADED}: probabilities are not calibrated")
    for name, network in bare.items() if count >= _LEAST_GRADED else ():
        for flip_tta in (False, True):
            plain = for_inference({name: network}, {}, flip_tta=flip_tta)[name]
            found = predict(plain, data.loader(graded), **options)
            grades = data.grades[graded]
            if name == "teacher" and not flip_tta:
                severest = knees or prefers_severest(found, grades, data.series(graded))
            if knees:
                found = knee_predictions(found, data.series(graded), severest=True)
                grades = knee_grades(grades, data.series(graded))
            temperatures[mode(name, flip_tta=flip_tta)] = fit_temperature(found.probabilities, grades)
    if len(training) and len(validation):
        teacher = bare["teacher"]
        classes = predict(teacher, data.loader(training), **options).predicted
        of = {
            name: features_of(teacher, [data.cache.images[row] for row in rows], **options)
            for name, rows in (("train", training), ("val", validation))
        }
        familiarity = fit_familiarity(of["train"], classes, of["val"])
    return Reference(temperatures, familiarity, _modalities(data, training), severest)


def prefers_severest(slices: Predictions, grades: NDArray[np.int64], series: Sequence[str]) -> bool:
    """Whether the most severe slices give the knees' grades a higher likelihood than the mean of all slices.

    ``grades`` (N,) of all slices, of which a knee has the highest. False if there are no volumes.
    """
    if not any(series):
        return False
    known = knee_grades(grades, series)
    found = {which: knee_predictions(slices, series, severest=which).probabilities for which in (False, True)}
    likelihood = {
        which: np.log(np.clip(p[np.arange(len(known)), known], 1e-12, None)).mean() for which, p in found.items()
    }
    return bool(likelihood[True] > likelihood[False])


def _modalities(data: KneeData, rows: Any) -> tuple[str, ...]:
    """From the manifest's column ``modality`` if there is one, else from the headers of some DICOM files."""
    if "modality" in data.manifest.table:
        found = {str(name).strip().upper()[:16] for name in data.manifest.table["modality"].iloc[rows]}
    else:
        some = rows[_spread(len(rows), _MOST_HEADERS)]
        found = {read_modality(split_slice(data.manifest.image_path(row))[0]) for row in some}
    return tuple(sorted(found - {""}))[:_MOST_MODALITIES]


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64)


def _paths(checkpoint: Checkpoint) -> tuple[Path, Path]:
    return checkpoint.folder / "reference.json", checkpoint.folder / "reference.safetensors"


def store(reference: Reference, checkpoint: Checkpoint, data: KneeData) -> None:
    """Write the reference into the checkpoint's folder, if a training run has not removed it meanwhile.

    Raises UserError if it cannot be written.
    """
    record, arrays = _paths(checkpoint)
    if not (checkpoint.folder / "state.json").is_file():
        log.warning(
            f"warning: {checkpoint.folder} was removed, so its temperatures are not stored; is the run training?"
        )
        return
    known = reference.familiarity
    tensors = {} if known is None else {name: getattr(known, name) for name in _ARRAYS}
    try:
        with moved_into_place(arrays) as scratch:
            save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, scratch)
        write_json(
            record,
            {
                "teacher_sha256": checkpoint.state["sha256"]["teacher.safetensors"],
                "manifest_sha256": file_hash(data.manifest.path),
                "arrays_sha256": _sha256(arrays),
                "temperatures": dict(reference.temperatures),
                "modalities": list(reference.modalities),
                "severest": reference.severest,
            },
        )
    except OSError as error:
        raise UserError(f"{record} cannot be written ({error.strerror or error})") from error


def is_of(checkpoint: Checkpoint, data: KneeData) -> bool:
    """Whether the stored reference was measured with the current manifest."""
    try:
        return read_json(_paths(checkpoint)[0]).get("manifest_sha256") == file_hash(data.manifest.path)
    except (OSError, ValueError):
        return False


def open_reference(checkpoint: Checkpoint) -> Reference | None:
    """The stored reference; None if there is none, or it belongs to other weights. Raises UserError if it is not valid.

    The folder may be untrusted: only plain values and numbers are read, of bounded size.
    """
    record, arrays = _paths(checkpoint)
    if not record.exists():
        return None
    try:
        values = read_json(record)
        if values["teacher_sha256"] != checkpoint.state["sha256"].get("teacher.safetensors"):
            return None
        return _reference(values, _tensors(arrays, values["arrays_sha256"]))
    except (OSError, ValueError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else f"{error!s:.300}"
        raise UserError(
            f"{record} is not valid ({reason}); remove it, and dcmt evaluate measures the images again"
        ) from error


def _reference(values: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> Reference:
    temperatures, modalities = values["temperatures"], values["modalities"]
    if not isinstance(temperatures, dict) or not all(map(is_temperature, temperatures.values())):
        raise ValueError(f"temperatures are {shown(temperatures)}, not numbers from {RANGE[0]} to {RANGE[1]:g}")
    if not isinstance(modalities, list) or len(modalities) > _MOST_MODALITIES:
        raise ValueError(f"modalities are {shown(modalities)}, not a list of names")
    if not all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= 16 for name in modalities):
        raise ValueError(f"modalities are {shown(modalities)}, not short names")
    severest = values.get("severest", False)
    if not isinstance(severest, bool):
        raise ValueError(f"severest is {shown(severest)}, not true or false")
    return Reference(temperatures, _familiarity(arrays), tuple(modalities), severest)


def is_temperature(value: object) -> bool:
    """Whether a stored value is a temperature."""
    return type(value) in (int, float) and RANGE[0] <= value <= RANGE[1]  # type: ignore[operator]


def _familiarity(arrays: Mapping[str, NDArray[np.float32]]) -> Familiarity | None:
    if not arrays:
        return None
    found = Familiarity(*(arrays[name] for name in _ARRAYS))
    size = len(found.center) if found.center.ndim == 1 else 0
    shapes = found.whitening.shape == (size, size), found.means.ndim == 2 and found.means.shape[1] == size
    if not 0 < size <= _MOST_FEATURES or not all(shapes) or not len(found.means):
        raise ValueError("its arrays have shapes that do not fit each other")
    if found.distances.ndim != 1 or not len(found.distances) or (np.diff(found.distances) < 0).any():
        raise ValueError("its distances are not an ascending list")
    return found


def _tensors(path: Path, wanted: object) -> dict[str, NDArray[np.float32]]:
    """The arrays: finite float32, with the given checksum."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes, more than {_MOST_BYTES:,}")
    if _sha256(path) != wanted:
        raise ValueError(f"{path.name} is damaged: its checksum differs")
    try:
        found = load_file(path)
    except Exception as error:  # an untrusted header can make the parser raise almost any exception
        raise ValueError(f"{path.name} is not a safetensors file ({error!s:.200})") from error
    for name, values in found.items():
        if name not in _ARRAYS or values.dtype != np.float32 or not np.isfinite(values).all():
            raise ValueError(f"{path.name} holds {shown(name)}, which is unknown or not finite float32 numbers")
    return dict(found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
