"""``dcmt predict`` with an exported network: ONNX Runtime in place of torch, which is not imported."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from dcmt.commands.new_patients.graded_files import find_slices, root_of, write_by_knee, write_table
from dcmt.onnx.card import Card, read_card
from dcmt.onnx.graph import check_graph
from dcmt.onnx.reader import Preparation, PreparedImages, unlike_reason
from dcmt.onnx.runtime import MOST_BYTES, open_session
from knee.errors import UserError

log = logging.getLogger(__name__)
SUFFIX = ".onnx"
_BATCH = 32
_CHUNK = 256
_ROUNDING = 1 - 1e-5
"""The file computes distances in float32: rounding must not mark an image at the threshold."""


class ExportedNetwork:
    """A file of ``dcmt export`` of a grader, opened. Raises UserError if it is not one."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size if path.is_file() else 0
        if not 0 < size < MOST_BYTES:
            raise UserError(f"{path} is not a file of dcmt export")
        try:
            check_graph(content := path.read_bytes())
            self._session = open_session(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.card: Card = read_card(properties, str(path))
        outputs = [output.name for output in self._session.get_outputs()]
        if self.card.kind != "grader" or outputs[:3] != ["probabilities", "attention_x", "attention_f"]:
            raise UserError(f"{path} is a {self.card.kind} with the outputs {', '.join(outputs)[:80]}, not a grader")
        self._wanted = ["probabilities", *(["distance"] if "distance" in outputs else [])]

    def grade(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Prepared images (n, S, S) → probabilities (n, K), and distances (n,) from the training images, NaN if unknown."""
        found = []
        for start in range(0, len(images), _BATCH):
            batch = np.ascontiguousarray(images[start : start + _BATCH, None])
            found.append(self._session.run(self._wanted, {"image": batch}))
        probabilities = np.concatenate([outputs[0] for outputs in found])
        if probabilities.shape != (len(images), len(self.card.grades)) or not np.isfinite(probabilities).all():
            raise UserError(
                "the outputs of the network are not finite probabilities of its grades; export the run again"
            )
        distances = [outputs[1] if len(outputs) > 1 else np.full(len(outputs[0]), np.nan) for outputs in found]
        return probabilities, np.concatenate(distances)

    @property
    def preparation(self) -> Preparation:
        """How images are prepared for it."""
        low, high = self.card.percentiles
        template = np.array(self.card.template, np.float32) if self.card.template else None
        return Preparation(self.card.image_size, (low, high), self.card.mirror_side, template)


def predict_command(options: argparse.Namespace) -> int:
    """Grade with a run folder, or with an exported file: then tables only, no overlays."""
    if options.run.suffix != SUFFIX:
        from dcmt.commands.new_patients.web import predict_from_anywhere  # imports torch

        return predict_from_anywhere(options)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{options.run} is graded in one process, by several threads; start dcmt without torchrun")
    if options.student or options.flip_tta:
        raise UserError(f"{options.run} holds one network: export it with --student or --flip-tta instead")
    if options.images is None or options.server or options.to or options.format != "csv,png":
        raise UserError(
            f"{options.run} grades the images of a path, and writes tables only; give a run folder for more"
        )
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for predictions.csv with --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    network = ExportedNetwork(options.run)
    if not network.card.distances:
        log.warning("note: the file does not know what its training images are like, so any image is graded")
    series = find_slices(options.images, options.slices)
    paths, root = list(series), root_of(options.images)
    reader = PreparedImages(network.preparation, grade_anyway=options.grade_anyway)
    tables = []
    with tqdm(total=len(paths), desc="predict", unit="image", disable=None) as bar:
        for start in range(0, len(paths), _CHUNK):
            images, read = reader.read(paths[start : start + _CHUNK])
            if read:
                names = [path.relative_to(root).as_posix() for path in read]
                tables.append(_graded(network, reader, images, names, grade_anyway=options.grade_anyway))
            bar.update(len(paths[start : start + _CHUNK]))
    out.mkdir(parents=True, exist_ok=True)
    if reader.rejected:
        write_table(out / "rejected.csv", pd.DataFrame(reader.rejected, columns=["image", "reason"]))
        log.info(f"{len(reader.rejected)} of {len(paths)} files could not be graded: {out / 'rejected.csv'}")
    if not tables:
        raise UserError(f"no image in {options.images} could be graded; see the reasons in {out / 'rejected.csv'}")
    table = pd.concat(tables, ignore_index=True)
    write_table(out / "predictions.csv", table)
    write_by_knee(
        out / "predictions_by_knee.csv", table, series, root, network.card.grades, severest=network.card.severest
    )
    count = int(table["predicted"].notna().sum())
    log.info(f"{count} images graded by the {network.card.network}: {out / 'predictions.csv'}. Research use only.")
    return 0


def _graded(
    network: ExportedNetwork,
    reader: PreparedImages,
    images: NDArray[np.uint8],
    names: list[str],
    *,
    grade_anyway: bool,
) -> pd.DataFrame:
    """One row an image, as ``dcmt predict`` writes them; images unlike the training images have no grade."""
    card, count = network.card, len(names)
    probabilities, distances = network.grade(images)
    predicted = probabilities.argmax(1)
    distances = distances * _ROUNDING
    farthest = card.farthest if card.distances else None
    facts = zip(reader.modalities[-count:], distances, strict=True)
    reasons = [
        unlike_reason(modality, float(distance), modalities=card.modalities, farthest=farthest)
        for modality, distance in facts
    ]
    shares: dict[str, Any] = {f"p_{grade}": probabilities[:, grade] for grade in range(len(card.grades))}
    table = pd.DataFrame(
        {
            "image": names,
            "side": reader.sides[-count:],
            "predicted": pd.array(predicted, dtype="Int64"),
            "predicted_name": [card.grades[grade] for grade in predicted],
            **shares,
        }
    )
    unlike = np.array([bool(reason) for reason in reasons])
    if not grade_anyway and unlike.any():
        table.loc[unlike, table.columns.drop(["image", "side"])] = pd.NA
    known = np.array(card.distances)
    farther = 1 - np.searchsorted(known, distances, side="left") / len(known) if len(known) else np.full(count, np.nan)
    return table.assign(familiarity=farther, unlike_training=unlike, reason=reasons)
