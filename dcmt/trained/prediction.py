"""Grade images that are not in a manifest with a loaded run, for ``dcmt predict`` and ``LoadedRun.predict``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from dcmt.onnx.reader import Chunk, Preparation, PreparedImages, Rejected
from dcmt.trained.reference import Image, Marks
from knee.data.datasets import EvalImages, eval_loader
from knee.errors import Faults, UserError
from knee.evaluation.predictions import iterate_attention, predict
from knee.evaluation.report import predictions_table
from knee.images.original import Source
from knee.io.files import typed
from knee.io.tables import shortened

if TYPE_CHECKING:
    from dcmt.trained.loaded import LoadedRun

log = logging.getLogger(__name__)

_BATCH = 32
_CHUNK = 256
_MAPS = ("attention", "evidence")


def predict_images(
    loaded: LoadedRun,
    paths: Iterable[str | Path],
    *,
    attention: bool = False,
    network: str = "teacher",
    grade_anyway: bool = False,
) -> pd.DataFrame:
    """Grade image files: one row for each file with image, side, grade, name and probabilities of the grades (p_0, p_1, …).

    ``familiarity`` and ``reason`` compare each image with the training images, if the run knows them. An image with a reason
    is unlike them and gets no grade (missing values), unless ``grade_anyway``. ``attention`` adds the columns ``attention``
    (the map x of the predicted grade, not thresholded) and ``evidence`` (the evidence map) of arrays (H, W) float32 in [0, 1],
    each on the pixels of its own file. ``network`` is teacher or student.

    Raises:
        UserError: no paths, a network that the run does not have, or files that cannot be read or show two knees (all named).
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    files = [Path(path) for path in paths]
    if not files:
        raise UserError("no images to grade: the list of paths is empty")
    if network not in loaded.networks:
        raise UserError(f"{loaded.run.path} has no {network}; it has {', '.join(loaded.networks)}")
    if note := reference_note(loaded):
        log.warning(note)
    reader = ImageReader(loaded, grade_anyway=grade_anyway)
    tables: list[pd.DataFrame] = []
    maps: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    rejected: list[Rejected] = []
    for chunk in reader.chunks(files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)):
        rejected += chunk.rejected
        if not rejected:
            table = grade_images(loaded, network, chunk.images, [str(file.path) for file in chunk.files])
            table.insert(1, "side", chunk.sides)
            tables.append(marked(table, reader.marks(chunk), grade_anyway=grade_anyway))
            maps += _maps(loaded, network, chunk.images, chunk.sources) if attention else []
    if rejected:
        errors = [f"{path}: {reason}" for path, reason in rejected]
        raise Faults(shortened(errors), summary=f"{len(errors)} of {len(files)} images cannot be graded:")
    table = pd.concat(tables, ignore_index=True)
    table = table.rename(columns={"predicted": "grade", "predicted_name": "name"})
    shares = [f"p_{grade}" for grade in range(loaded.grade_set.count)]
    table = table[["image", "side", "grade", "name", *shares, "familiarity", "reason"]]
    if not attention:
        return table
    return table.assign(
        **{name: pd.Series([pair[place] for pair in maps], dtype=object) for place, name in enumerate(_MAPS)}
    )


def _maps(
    loaded: LoadedRun, network: str, images: NDArray[np.uint8], sources: Sequence[Source]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Attention and evidence map of each image on its file's own pixels."""
    found = []
    places = iter(sources)
    for batch in iterate_attention(loaded.networks[network], image_loader(images), evidence=True, **loaded.inference):
        assert batch.evidence is not None
        for squares in zip(batch.attention.float().cpu().numpy(), batch.evidence.cpu().numpy(), strict=True):
            geometry = next(places).geometry
            x, evidence = (np.clip(geometry.restore(square), 0, 1).astype(np.float32) for square in squares)
            found.append((x, evidence))
    return found


def image_loader(images: NDArray[np.uint8]) -> DataLoader[tuple[Tensor, Tensor]]:
    """A loader of prepared images (n, S, S), in order."""
    return eval_loader(EvalImages(images, np.arange(len(images))), batch_size=_BATCH)


def grade_images(loaded: LoadedRun, name: str, images: NDArray[np.uint8], files: list[str]) -> pd.DataFrame:
    """The predictions of the network ``name`` for prepared images (n, S, S), one row for each image."""
    found = predict(loaded.networks[name], image_loader(images), flip=not loaded.flip_tta, **loaded.inference)
    table = predictions_table(found, cases=files).rename(columns={"case": "image"}).drop(columns="iou")
    table.insert(2, "predicted_name", [loaded.grade_set.names[grade] for grade in found.predicted])
    return table


def marked(table: pd.DataFrame, marks: Marks | None, *, grade_anyway: bool) -> pd.DataFrame:
    """The predictions with the columns familiarity, unlike_training and reason.

    Images unlike the training images lose all columns of the network, unless ``grade_anyway``.
    """
    count = len(table)
    familiarity, reasons = marks or Marks(np.full(count, np.nan), [""] * count)
    unlike = np.array([bool(reason) for reason in reasons])
    table = table.astype({"predicted": "Int64", **({"empty": "boolean"} if "empty" in table else {})})
    if "flip_changed" in table:
        table = table.astype({"flip_changed": "boolean"})
    if not grade_anyway and unlike.any():
        table.loc[unlike, table.columns.drop(["image", "side"], errors="ignore")] = pd.NA
    return table.assign(familiarity=familiarity, unlike_training=unlike, reason=reasons)


def reference_note(loaded: LoadedRun) -> str:
    """A note if the run does not know what its training images are like; else empty."""
    if loaded.reference is not None and loaded.reference.familiarity is not None:
        return ""
    run = typed(loaded.run.path)
    if loaded.reference is not None:
        return f"note: {run} has no training or validation images, so images unlike them are graded like any other"
    return (
        f"note: {run} does not store what its training images are like, so any image is graded, and probabilities are not "
        f"calibrated (temperature 1); add both with: dcmt evaluate {run} --split val"
    )


class ImageReader(PreparedImages):
    """Prepares images like the run's training data, and compares them with it."""

    def __init__(self, loaded: LoadedRun, **given: Any) -> None:
        """``given`` as for ``PreparedImages``."""
        data = loaded.config.data
        preparation = Preparation(data.image_size, data.percentiles, data.mirror_side, loaded.run.template())
        super().__init__(preparation, **given)
        self._loaded = loaded

    def marks(self, chunk: Chunk) -> Marks | None:
        """How familiar the images are."""
        facts = zip(chunk.images, chunk.files, strict=True)
        return self._loaded.marks([Image(image, file.source.geometry, file.modality) for image, file in facts])
