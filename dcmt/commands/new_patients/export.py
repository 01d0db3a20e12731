"""``dcmt predict --format html,nifti,dicom``: new patients through the exporters of the review, without a manifest."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

import dcmt
from dcmt.commands.review.export import review_run
from dcmt.commands.review.files import keep_private
from dcmt.trained.loaded import LoadedRun
from dcmt.trained.prediction import ImageReader, image_loader
from knee.data.cases import case_name, case_names, load_salt
from knee.errors import UserError, counted
from knee.evaluation.by_knee import knee_probabilities
from knee.io.pool import ahead
from knee.io.tables import shortened
from knee.review.cases import CaseFacts, ReviewCase
from knee.review.collect import review_cases
from knee.review.export import Identity, ReviewExport

log = logging.getLogger(__name__)

FORMATS = ("csv", "png", "html", "nifti", "dicom")
"""``csv`` is always written, ``png`` are the overlays."""
_EXPORTED = ("html", "nifti", "dicom")
_CHUNK = 32
_MOST_PX = 1 << 23
"""Larger originals are read again when they are written, so that two chunks of them need at most 512 MiB."""


def chosen_formats(text: str) -> tuple[str, ...]:
    """The formats of ``--format``, each once. Raises UserError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UserError(f"format {', '.join(unknown) or 'none'}; choose from {', '.join(FORMATS)}")
    return names


def export_graded(
    loaded: LoadedRun,
    network: str,
    table: pd.DataFrame,
    series: Mapping[Path, str],
    root: Path,
    options: argparse.Namespace,
) -> None:
    """Write the graded images of ``table`` in the formats that need the review's exporters.

    Case names and identifiers are salted by the run's own salt, so the same image has the same ones at every call.
    """
    formats = tuple(name for name in chosen_formats(options.format) if name in _EXPORTED)
    graded = table[table["predicted"].notna()]
    if not formats or graded.empty:
        return
    out: Path = options.out
    salt = load_salt(loaded.run.local / "predict", out)
    names = case_names(salt, graded["image"].tolist())
    export = ReviewExport(
        folder=out,
        run=review_run(loaded, f"Predictions of {loaded.run.path.name}"),
        formats=formats,
        key_path=out / "local" / "review_key.csv",
        version=dcmt.__version__,
        salt=salt,
        networks=(network,),
        keep_identity=options.keep_identity,
        pool=partial(knee_probabilities, severest=loaded.pools_severest),
        force=options.force,
        written=getattr(options, "written", None),
    )
    facts = _facts(graded, names, series, root, salt)
    identities = {one.case: Identity(image, one.patient) for one, image in zip(facts, graded["image"], strict=True)}
    export.write(_cases(loaded, facts, [root / image for image in graded["image"]], options), identities)
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


def _cases(
    loaded: LoadedRun, facts: Sequence[CaseFacts], paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[ReviewCase]:
    """The cases in order; a run without a student shows its teacher twice. A chunk is graded while one is written."""
    for chunk in ahead(_chunks(loaded, facts, paths, options)):
        yield from chunk


def _chunks(
    loaded: LoadedRun, facts: Sequence[CaseFacts], paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[list[ReviewCase]]:
    teacher = loaded.networks["teacher"]
    reader = ImageReader(loaded, grade_anyway=options.grade_anyway, most_px=_MOST_PX)
    page = "html" in chosen_formats(options.format)
    for start in range(0, len(paths), _CHUNK):
        images, read = reader.read(paths[start : start + _CHUNK])
        if not read:
            continue
        known = dict(zip(paths[start : start + _CHUNK], facts[start : start + _CHUNK], strict=True))
        sources = zip(read, reader.sources[-len(read) :], reader.originals, strict=True)
        placed = [replace(known[path], source=source, original=original) for path, source, original in sources]
        student, loader = loaded.networks.get("student", teacher), image_loader(images)
        yield list(review_cases(student, teacher, loader, placed.__getitem__, doubts=page, **loaded.inference))
