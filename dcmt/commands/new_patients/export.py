"""``dcmt predict --format html,nifti,dicom``: new patients through the exporters of the review, without a manifest."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import dcmt
from dcmt.commands.new_patients.graded_files import EXPORTED, chosen_formats
from dcmt.commands.review.export import review_run
from dcmt.commands.review.files import keep_private
from dcmt.onnx.reader import PreparedImages
from dcmt.trained.loaded import LoadedRun
from dcmt.trained.prediction import ImageReader, image_loader
from knee.data.cases import case_name, case_names, load_salt
from knee.errors import counted
from knee.evaluation.by_knee import knee_probabilities
from knee.io.pool import ahead
from knee.io.tables import shortened
from knee.review.cases import CaseFacts, ReviewCase
from knee.review.collect import review_cases
from knee.review.export import Identity, ReviewExport
from knee.review.page.html import ReviewRun

log = logging.getLogger(__name__)

_CHUNK = 32
MOST_PX = 1 << 23
"""Larger originals are read again when they are written, so that two chunks of them need at most 512 MiB."""


class Model(NamedTuple):
    """What an export needs of a run that was opened, or of an exported file."""

    run: ReviewRun
    network: str
    """The one that graded."""
    beside: Path
    """Its salt is kept next to this, so the same image has the same case name and identifiers at every call."""
    chunks: Callable[[Sequence[CaseFacts], Sequence[Path]], Iterator[list[ReviewCase]]]
    """The cases of images, given what is known about them, a chunk at a time."""


def model_of_run(loaded: LoadedRun, network: str, reader: ImageReader, options: argparse.Namespace) -> Model:
    """The run as a model for exports of what ``reader`` read."""
    run = review_run(loaded, f"Predictions of {loaded.run.path.name}")
    return Model(run, network, loaded.run.local / "predict", partial(_chunks, loaded, reader, options=options))


def export_graded(
    model: Model, table: pd.DataFrame, series: Mapping[Path, str], root: Path, options: argparse.Namespace
) -> None:
    """Write the graded images of ``table`` in the formats that need the review's exporters."""
    formats = tuple(name for name in chosen_formats(options.format) if name in EXPORTED)
    graded = table[table["predicted"].notna()]
    if not formats or graded.empty:
        return
    out: Path = options.out
    salt = load_salt(model.beside, out)
    names = case_names(salt, graded["image"].tolist())
    export = ReviewExport(
        folder=out,
        run=model.run,
        formats=formats,
        key_path=out / "local" / "review_key.csv",
        version=dcmt.__version__,
        salt=salt,
        networks=(model.network,),
        keep_identity=options.keep_identity,
        shift_dates=options.shift_dates,
        pool=partial(knee_probabilities, severest=model.run.severest),
        force=options.force,
        written=getattr(options, "written", None),
    )
    facts = _facts(graded, names, series, root, salt)
    identities = {one.case: Identity(image, one.patient) for one, image in zip(facts, graded["image"], strict=True)}
    # A chunk is graded while one is written.
    chunks = ahead(model.chunks(facts, [root / image for image in graded["image"]]))
    export.write(chain.from_iterable(chunks), identities)
    keep_private(export.key_path)
    log.info(f"{counted(export.cases, 'case')} in {out}: {', '.join(formats)}")
    for line in shortened(export.left_out)[:20]:
        log.info(f"  left out: {line}")
    if "dicom" in formats and not export.keep_identity:
        log.info("the DICOM objects are de-identified; --keep-identity makes objects of the patient's own studies")


def _facts(
    graded: pd.DataFrame, names: Sequence[str], series: Mapping[Path, str], root: Path, salt: bytes
) -> list[CaseFacts]:
    volumes = [series.get(root / str(image), "") for image in graded["image"]]
    return [
        CaseFacts(
            case=case,
            split="new",
            side=str(row["side"]),
            familiarity=float(row["familiarity"]),
            unlike=str(row["reason"]),
            # A DICOM file names its patient; of other files, the slices of a volume are of one.
            patient=volume if "#" in str(row["image"]) else "",
            stack=case_name(salt, f"series {volume}") if volume else "",
            place=place,
        )
        for place, (case, volume, row) in enumerate(zip(names, volumes, graded.to_dict("records"), strict=True))
    ]


def prepared_chunks(
    reader: PreparedImages, facts: Sequence[CaseFacts], paths: Sequence[Path]
) -> Iterator[tuple[NDArray[np.uint8], list[CaseFacts]]]:
    """Prepared images (n, S, S) with what is known about them, a chunk at a time; with their originals, if these are kept."""
    for start in range(0, len(paths), _CHUNK):
        chunk = reader.read(paths[start : start + _CHUNK])
        if not chunk.files:
            continue
        known = dict(zip(paths[start : start + _CHUNK], facts[start : start + _CHUNK], strict=True))
        yield (
            chunk.images,
            [replace(known[file.path], source=file.source, original=file.original) for file in chunk.files],
        )


def _chunks(
    loaded: LoadedRun,
    before: ImageReader,
    facts: Sequence[CaseFacts],
    paths: Sequence[Path],
    *,
    options: argparse.Namespace,
) -> Iterator[list[ReviewCase]]:
    """A run without a student shows its teacher twice."""
    teacher = loaded.networks["teacher"]
    reader = ImageReader(loaded, grade_anyway=options.grade_anyway, most_px=MOST_PX, before=before)
    page = "html" in chosen_formats(options.format)
    for images, placed in prepared_chunks(reader, facts, paths):
        student, loader = loaded.networks.get("student", teacher), image_loader(images)
        yield list(review_cases(student, teacher, loader, placed.__getitem__, doubts=page, **loaded.inference))
