"""``dcmt review export``: export the cases of a run for readers."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import dcmt
from dcmt.commands.review.files import keep_private, key_path, model_hash, review_folder, run_name, sanity_path
from dcmt.commands.selection import Selection, select
from dcmt.trained.loaded import LoadedRun, row_marks
from dcmt.trained.reference import Marks
from knee.data.cases import case_name
from knee.errors import UserError
from knee.evaluation.by_knee import knee_probabilities
from knee.images.slices import stacks
from knee.intake.scan import claim_folder
from knee.io.files import refuse_existing, typed, whole_file
from knee.io.plain import read_json
from knee.io.tables import shortened
from knee.review import CLAIM
from knee.review.cases import CaseFacts, ReviewCase, doubtfulness, most_doubtful
from knee.review.collect import review_cases
from knee.review.export import Identity, ReviewExport
from knee.review.page.html import ReviewRun

log = logging.getLogger(__name__)

_SANITY = "sanity.png"


def export_command(options: argparse.Namespace) -> int:
    """Write the cases in all requested formats, and their key into the run's ``local`` folder."""
    chosen = select(options, labeled=True)
    loaded = chosen.loaded
    if "student" not in loaded.networks:
        raise UserError(
            f"{options.run} has only a teacher, but a review compares student and teacher; export a trained run"
        )
    check_choice(chosen, options.cases, options.by)
    folder: Path = options.out or review_folder(loaded.run, options.split)
    export = ReviewExport(
        folder=folder,
        run=review_run(loaded, options.title, sanity=_sanity_of(loaded)),
        formats=tuple(dict.fromkeys(name.strip() for name in options.format.split(",") if name.strip())),
        key_path=key_path(loaded.run),
        version=dcmt.__version__,
        salt=chosen.data.salt,
        keep_identity=options.keep_identity,
        maps=options.maps,
        shift_dates=options.shift_dates,
        pool=partial(knee_probabilities, severest=loaded.pools_severest),
        force=options.force,
    )
    has_figure = bool(export.run.sanity_figure) and "html" in export.formats
    if has_figure:
        refuse_existing(folder / _SANITY, force=options.force)
    cases: Iterable[ReviewCase] = tqdm(
        run_cases(chosen), total=len(chosen.rows), desc="grading", unit="case", disable=None
    )
    if options.cases is not None and any(chosen.data.series(chosen.rows)):
        chosen = most_doubtful_knees(chosen, cases, options.cases, by=options.by or "all")
        cases = tqdm(run_cases(chosen), total=len(chosen.rows), desc="writing", unit="case", disable=None)
    elif options.cases is not None:
        cases = tqdm(
            most_doubtful(cases, options.cases, by=options.by or "all"), desc="writing", unit="case", disable=None
        )
    for note in claim_folder(folder) if options.out else []:
        log.info(note)
    export.write(cases, identities(chosen))
    keep_private(export.key_path)
    if has_figure:
        # Next to the page, so that the link works wherever the folder is moved.
        with whole_file(folder / _SANITY, force=options.force) as scratch:
            shutil.copyfile(sanity_path(loaded.run), scratch)
    _report(export, len(chosen.rows), options)
    return 0


def _sanity_of(loaded: LoadedRun) -> bool:
    """Whether the weight-randomisation check was made with the exported checkpoint."""
    if not sanity_path(loaded.run).exists():
        return False
    try:
        step = read_json(loaded.run.path / "sanity.json")["checkpoint_step"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(step == loaded.checkpoint.step)


def check_choice(chosen: Selection, count: int | None, by: str | None) -> None:
    """Raises UserError if ``--cases`` and ``--by`` cannot be applied."""
    split, rows, data = chosen.split, chosen.rows, chosen.data
    if by is not None and count is None:
        raise UserError(f"--by {by} sets how the most doubtful cases are chosen; give their number with --cases N")
    if count is not None and count < 1:
        raise UserError(f"--cases is {count}; give at least 1, or leave it out for all")
    if by == "overlap" and not data.cache.has_mask[rows].any():
        raise UserError(f"no {split} image has a mask, so cases cannot be chosen by overlap; choose another --by")
    if by == "mismatch" and not (chosen.grades[rows] >= 0).any():
        raise UserError(
            f"{split} images have no recorded grades to compare with; choose another --by, or --split train"
        )


def review_run(loaded: LoadedRun, title: str | None = None, *, sanity: bool = False) -> ReviewRun:
    """What all exported cases of a run share."""
    name = run_name(loaded.run)
    return ReviewRun(
        run=name,
        model_hash=model_hash(loaded.checkpoint),
        grade_set=loaded.grade_set,
        title=title or f"Knee attention review: {name}",
        threshold=loaded.config.attention.threshold,
        severest=loaded.pools_severest,
        sanity_figure=_SANITY if sanity else None,
    )


def run_cases(chosen: Selection) -> Iterator[ReviewCase]:
    """The cases of the rows, one batch at a time; memory does not grow with their number."""
    return review_cases(
        chosen.loaded.networks["student"],
        chosen.loaded.networks["teacher"],
        chosen.data.loader(chosen.rows),
        case_facts(chosen, row_marks(chosen.loaded, chosen.data, chosen.rows)),
        masks=chosen.data.masks,
        has_mask=chosen.data.cache.has_mask,
        **chosen.loaded.inference,
    )


def most_doubtful_knees(chosen: Selection, cases: Iterable[ReviewCase], count: int, *, by: str) -> Selection:
    """The rows of the ``count`` knees with the most doubtful slice; whole volumes, in the manifest's order.

    Only doubts are kept of ``cases``, so that memory does not grow with the slices; the caller grades the chosen rows again.
    """
    doubts = np.array([doubtfulness(case, by) for case in cases])
    knees = sorted(stacks(chosen.data.series(chosen.rows)), key=lambda places: -doubts[places].max())
    return replace(chosen, rows=chosen.rows[np.sort(np.concatenate(knees[:count]))])


def case_facts(chosen: Selection, marks: Marks | None = None) -> Callable[[int], CaseFacts]:
    """A function that gives what is known about a row; ``marks`` are the familiarity of the rows, if it is known."""
    data = chosen.data
    sides = data.manifest.table["side"].tolist()
    series = dict(zip(chosen.rows.tolist(), data.series(chosen.rows), strict=True))
    patients = data.manifest.table["patient"].tolist()
    places = {row: place for place, row in enumerate(chosen.rows.tolist())}

    def facts(row: int) -> CaseFacts:
        grade = int(chosen.grades[row])
        return CaseFacts(
            case=chosen.cases[row],
            split=chosen.split,
            grade=grade if grade >= 0 else None,
            side=sides[row],
            patient=str(patients[row]),
            source=data.source(row),
            stack=case_name(data.salt, f"series {series[row]}") if series[row] else "",
            place=places[row],
            familiarity=None if marks is None else float(marks.familiarity[places[row]]),
            unlike="" if marks is None else marks.reasons[places[row]],
        )

    return facts


def identities(chosen: Selection) -> Mapping[str, Identity]:
    """The image and patient of each case."""
    table = chosen.data.manifest.table.iloc[chosen.rows]
    named = zip(chosen.cases.values(), table["image"], table["patient"], strict=True)
    return {case: Identity(image, patient) for case, image, patient in named}


def _report(export: ReviewExport, total: int, options: argparse.Namespace) -> None:
    counted = f"{export.cases} cases" if options.cases is None else f"{export.cases} of {total} cases"
    log.info(f"{counted} of the {options.split} images in {export.folder}: {', '.join(export.formats)}")
    if export.removed:
        log.info(
            f"  {export.removed} files of an earlier export were removed, so that the folder contains only these cases"
        )
    for line in shortened(export.left_out)[:20]:
        log.info(f"  left out: {line}")
    if len(export.left_out) > 20:
        log.info(f"  … and {len(export.left_out) - 20} more left out")
    if export.keep_identity and "dicom" in export.formats:
        log.info("the DICOM objects contain the patients' identity: protect them like the source images")
    if export.run.sanity_figure is None and "html" in export.formats:
        log.info(f"the page has no weight-randomisation figure; make one with: dcmt review sanity {typed(options.run)}")
    log.info(f"key from cases to images: {export.key_path} (do not share it)")
    if "html" in export.formats:
        log.info(f"open {export.folder / 'review.html'}, then: dcmt review import {typed(options.run)} verdicts_….json")
    log.info(CLAIM)
