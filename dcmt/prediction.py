"""Grade images that are not in a manifest with a loaded run, for ``dcmt predict`` and ``LoadedRun.predict``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from dcmt.reference import Image, Marks
from knee.data.datasets import EvalImages, eval_loader
from knee.errors import Faults, UserError
from knee.evaluation.predictions import iterate_attention, predict
from knee.evaluation.report import predictions_table
from knee.images.geometry import Geometry
from knee.images.joints import find_knees
from knee.images.original import Source
from knee.images.read import Pixels, looks_inverted, prepare, read_image
from knee.images.slices import split_slice
from knee.intake.naming import side_in_path
from knee.io.files import typed
from knee.io.tables import shortened

if TYPE_CHECKING:
    from dcmt.loaded import LoadedRun

log = logging.getLogger(__name__)

_BATCH = 32
_CHUNK = 256
_MAPS = ("attention", "evidence")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")


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
    for start in range(0, len(files), _CHUNK):
        images, read = reader.read(files[start : start + _CHUNK])
        if read and not reader.rejected:
            table = grade_images(loaded, network, images, [str(path) for path in read])
            tables.append(marked(table, reader.marks(images), grade_anyway=grade_anyway))
            maps += _maps(loaded, network, images, reader.sources[-len(read) :]) if attention else []
    if reader.rejected:
        errors = [f"{path}: {reason}" for path, reason in reader.rejected]
        raise Faults(shortened(errors), summary=f"{len(errors)} of {len(files)} images cannot be graded:")
    table = pd.concat(tables, ignore_index=True)
    table = table.rename(columns={"predicted": "grade", "predicted_name": "name"})
    table.insert(1, "side", reader.sides)
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


def two_knees_reason(path: Path) -> str:
    """Why an image of two knees gets no grade, and what to do."""
    folder = typed(path.parent)
    return (
        f"shows two knees, and a grade is of one; cut them out with dcmt crop {folder} --out crops, and grade the crops"
    )


class ImageReader:
    """Prepares images like the run's training data; collects the sides and sources, and the files that cannot be graded."""

    def __init__(self, loaded: LoadedRun, *, grade_anyway: bool = False) -> None:
        """``grade_anyway``: an image of two knees is graded like any other."""
        self._loaded, self._data, self._anyway = loaded, loaded.config.data, grade_anyway
        self._template = loaded.run.template()
        self.rejected: list[tuple[str, str]] = []
        self.sides: list[str] = []
        self.sources: list[Source] = []
        self.modalities: list[str] = []
        self.mirrors = "" if self._data.mirror_side == "none" else self._data.mirror_side
        """The side whose images are flipped horizontally (L or R); empty if neither is."""

    def read(self, paths: Sequence[Path]) -> tuple[NDArray[np.uint8], list[Path]]:
        """Prepared images (n, S, S) of the readable ones among ``paths``, and their paths."""
        images, read = [], []
        for path in paths:
            if _CONTROL.search(str(path)):
                escaped = _CONTROL.sub(lambda letter: repr(letter[0])[1:-1], str(path))
                self.rejected.append(
                    (escaped, "the name contains a line break or another control character; rename it")
                )
                continue
            try:
                pixels = read_image(path)
            except UserError as error:
                self.rejected.append((str(path), str(error).removeprefix(f"{path}: ")))
                continue
            if not self._anyway and len(find_knees(pixels.values, pixels.spacing_mm)) == 2:
                self.rejected.append((str(path), two_knees_reason(path)))
                continue
            self.sides.append(pixels.laterality or side_in_path(split_slice(path)[0].as_posix()))
            image, geometry, inverted = self._prepare(pixels, self.sides[-1])
            images.append(image)
            self.modalities.append(pixels.modality)
            self.sources.append(Source(path, geometry, inverted, self._data.percentiles))
            read.append(path)
        size = self._data.image_size
        return np.stack(images) if images else np.zeros((0, size, size), np.uint8), read

    def marks(self, images: NDArray[np.uint8]) -> Marks | None:
        """How familiar the images (n, S, S) are that the last ``read`` returned."""
        facts = zip(images, self.sources[-len(images) :], self.modalities[-len(images) :], strict=True)
        return self._loaded.marks([Image(image, source.geometry, modality) for image, source, modality in facts])

    def _prepare(self, pixels: Pixels, side: str) -> tuple[NDArray[np.uint8], Geometry, bool]:
        """The square input, its position on the image, and whether the image was a negative."""
        mirror = bool(side) and side == self.mirrors
        size, percentiles = self._data.image_size, self._data.percentiles
        image, geometry = prepare(pixels.values, size, percentiles=percentiles, mirror=mirror)
        inverted = self._template is not None and looks_inverted(geometry.content(image), self._template)
        if inverted:
            image, _ = prepare(pixels.values, size, percentiles=percentiles, mirror=mirror, invert=True)
        return image, geometry, inverted
