"""``dcmt predict`` with an exported network: ONNX Runtime in place of torch, which is not imported."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dcmt.commands.new_patients.graded_files import (
    KEPT_PX,
    chosen_formats,
    find_slices,
    root_of,
    write_by_knee,
    write_table,
)
from dcmt.onnx.file import ExportedNetwork
from dcmt.onnx.reader import Chunk, PreparedImages, Rejected, unlike_reason
from knee.errors import UserError
from knee.grades import decide

log = logging.getLogger(__name__)
SUFFIX = ".onnx"
_CHUNK = 256
_ROUNDING = 1 - 1e-5
"""The file computes distances in float32: rounding must not mark an image at the threshold."""


def predict_command(options: argparse.Namespace) -> int:
    """Grade with a run folder, or with an exported file."""
    if options.run.suffix != SUFFIX or options.server or options.study or options.to or options.images is None:
        from dcmt.commands.new_patients.web import predict_from_anywhere  # imports torch

        return predict_from_anywhere(options)
    return predict_exported(options)


def predict_exported(options: argparse.Namespace) -> int:
    """Grade with an exported file: tables and, if asked for, maps and grades as NIfTI and DICOM. No overlays."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{options.run} is graded in one process, by several threads; start dcmt without torchrun")
    if options.student or options.flip_tta:
        raise UserError(f"{options.run} holds one network: export it with --student or --flip-tta instead")
    formats = chosen_formats(options.format)
    if "html" in formats:
        raise UserError(f"{options.run} holds one network, and the page compares two; give the run folder for html")
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
    exported = {"nifti", "dicom"} & set(formats)
    kept = KEPT_PX if exported else 0
    reader = PreparedImages(network.preparation, grade_anyway=options.grade_anyway, kept_px=kept)
    tables, rejected = _tables(network, reader, paths, root, grade_anyway=options.grade_anyway)
    out.mkdir(parents=True, exist_ok=True)
    if rejected:
        write_table(out / "rejected.csv", pd.DataFrame(rejected, columns=["image", "reason"]))
        log.info(f"{len(rejected)} of {len(paths)} files could not be graded: {out / 'rejected.csv'}")
    if not tables:
        raise UserError(f"no image in {options.images} could be graded; see the reasons in {out / 'rejected.csv'}")
    table = pd.concat(tables, ignore_index=True)
    write_table(out / "predictions.csv", table)
    if exported:
        from dcmt.commands.new_patients.export import export_graded  # imports torch
        from dcmt.commands.new_patients.exported import model_of_file

        export_graded(model_of_file(options.run, network, reader, options), table, series, root, options)
    card = network.card
    write_by_knee(out / "predictions_by_knee.csv", table, series, root, card.scale, severest=card.severest)
    count = int(table["predicted"].notna().sum())
    if "png" in formats and not options.no_overlays:
        log.info("no overlays: a file draws none; give the run folder for png")
    log.info(f"{count} images graded by the {network.card.network}: {out / 'predictions.csv'}. Research use only.")
    return 0


def _tables(
    network: ExportedNetwork, reader: PreparedImages, paths: Sequence[Path], root: Path, *, grade_anyway: bool
) -> tuple[list[pd.DataFrame], list[Rejected]]:
    """The rows of the readable images, a chunk at a time, and the other files."""
    tables, rejected = [], list[Rejected]()
    with tqdm(total=len(paths), desc="predict", unit="image", disable=None) as bar:
        for chunk in reader.chunks(paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)):
            rejected += chunk.rejected
            if chunk.files:
                tables.append(_graded(network, chunk, root, grade_anyway=grade_anyway))
            bar.update(len(chunk.files) + len(chunk.rejected))
    return tables, rejected


def _graded(network: ExportedNetwork, chunk: Chunk, root: Path, *, grade_anyway: bool) -> pd.DataFrame:
    """One row an image, as ``dcmt predict`` writes them; images unlike the training images have no grade."""
    card, count = network.card, len(chunk.files)
    probabilities, distances = network.grade(chunk.images)
    predicted = decide(probabilities, card.decision)
    distances = distances * _ROUNDING
    farthest = card.farthest if card.distances else None
    facts = zip(chunk.files, distances, strict=True)
    reasons = [
        unlike_reason(file.modality, float(distance), modalities=card.modalities, farthest=farthest)
        for file, distance in facts
    ]
    shares: dict[str, Any] = {f"p_{grade}": probabilities[:, grade] for grade in range(len(card.grades))}
    table = pd.DataFrame(
        {
            "image": [file.path.relative_to(root).as_posix() for file in chunk.files],
            "side": chunk.sides,
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
