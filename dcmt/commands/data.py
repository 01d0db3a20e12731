"""The commands that make and check data: ``phantom``, ``manifest``, ``check``, ``split`` and ``cache``."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcmt.commands.registry import find_function
from knee.data.manifest import Inspection, Manifest, read_manifest, write_manifest
from knee.errors import Faults, UserError, counted
from knee.grades import GradeSet, load_grade_set
from knee.io.files import refuse_existing, refuse_inputs

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from knee.intake.sheet import Sheet


def phantom(options: argparse.Namespace) -> int:
    """``dcmt phantom``."""
    from knee.phantom import write_phantom

    chosen = {name: getattr(options, name) for name in ("patients", "slices") if getattr(options, name) is not None}
    path = write_phantom(
        options.folder,
        kind=options.kind,
        size=options.size,
        seed=options.seed,
        drawn_masks=options.drawn_masks,
        reports=options.reports,
        processes=os.cpu_count() or 1,
        force=options.force,
        **chosen,
    )
    log.info(f"wrote {path}")
    return 0


def manifest(options: argparse.Namespace) -> int:
    """``dcmt manifest``."""
    from knee.intake.folders import manifest_from_folder

    grade_set = load_grade_set(options.grade_set)
    target = options.out or options.folder / "manifest.csv"
    refuse_inputs(target, spreadsheet=options.grades)
    refuse_existing(target, force=options.force)
    sheet = _sheet(options, grade_set)
    table = manifest_from_folder(
        options.folder,
        options.layout,
        relative_to=target.parent,
        pattern=options.pattern,
        grade_count=grade_set.count,
        grade_names=grade_set.names,
        sheet=sheet,
        slices=options.slices,
    )
    write_manifest(target, table, force=options.force)
    for note in table.attrs["notes"]:
        log.info(note)
    graded = table["grade"].notna()
    counts = table.loc[graded, "grade"].astype(int).value_counts().sort_index()
    by_grade = "".join(f"  {grade}: {count}" for grade, count in counts.items()) or " none"
    log.info(
        f"{len(table)} images of {table['patient'].nunique()} patients; by grade{by_grade}; ungraded: {int((~graded).sum())}"
    )
    if not graded.any() and ("grade", "") not in options.column:
        log.info(
            "no image has a grade: put the images into folders GRADE/* or SPLIT/GRADE/*, give the spreadsheet with the "
            "grades with --grades, or write them into the column grade"
        )
    if "split" in table and table["split"].ne("").any():
        log.info("by split " + "  ".join(f"{name}: {count}" for name, count in table["split"].value_counts().items()))
    example = table.iloc[0]
    log.info(
        f"patient of {example['image']}: {example['patient']}"
        + (f", side {example['side']}" if example["side"] else "")
    )
    kind = "" if options.grade_set == "kl" else f" --grade-set {shlex.quote(options.grade_set)}"
    log.info(f"wrote {target}; next: dcmt split {shlex.quote(str(target))}{kind} --out data_splits/NAME.csv")
    return 0


def _sheet(options: argparse.Namespace, grade_set: GradeSet) -> Sheet | None:
    """The spreadsheet of ``--grades``, read according to its options."""
    from knee.intake.sheet import read_sheet

    given = {"--sheet": options.sheet, "--column": options.column, "--side": options.side}
    given |= {"--missing": options.missing, "--only": options.only, "--prefer": options.prefer}
    given |= {"--report": options.report, "--table": options.table}
    if options.grades is None:
        unused = next((option for option, value in given.items() if value), None)
        if unused:
            raise UserError(f"{unused} describes the spreadsheet of --grades; give --grades too")
        return None
    for option, role in (("--column", "column"), ("--side", "side"), ("--only", "only"), ("--prefer", "prefer")):
        names = [name for name, _ in getattr(options, role)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{option} {twice}=… is given twice; keep only one")
    sides = dict(options.side)
    odd = next((value for value, side in sides.items() if side not in ("L", "R")), None)
    if odd is not None:
        raise UserError(f"--side {odd}={sides[odd]}: a side is L or R; write --side {odd}=R or --side {odd}=L")
    return read_sheet(
        options.grades,
        grade_set,
        name=options.sheet,
        columns=dict(options.column),
        sides=sides,
        missing=options.missing,
        only=dict(options.only),
        prefer={name: [value.strip() for value in values.split(",")] for name, values in options.prefer},
        report=options.report,
        table=options.table,
    )


def check(options: argparse.Namespace) -> int:
    """``dcmt check``: list all errors of a manifest, its images, its masks and a split."""
    from knee.data.check import check_data, drop_bad

    if options.skip_bad:
        refuse_inputs(options.skip_bad, manifest=options.manifest, split_file=options.split)
        refuse_existing(options.skip_bad, force=options.force)
    found = check_data(options.manifest, load_grade_set(options.grade_set))
    of_reports, report_faults = _of_reports(found.manifest)
    for remark in (*found.remarks, *of_reports):
        log.info(f"please check: {remark}")
    split_faults = _split_faults(options, found) if options.split else []
    if options.skip_bad:
        if split_faults:
            faults = [*found.leak_faults(), *split_faults]
            raise Faults(
                faults,
                summary=f"{options.manifest}: {counted(len(faults), 'error')} that cannot be skipped; fix them:",
            )
        drop_bad(found, options.skip_bad, force=options.force)
        log.info(f"{len(found.bad_lines)} of {found.count} rows are bad; they are listed in {options.skip_bad}")
        return 0
    faults = found.faults() + split_faults + report_faults
    if not faults:
        log.info(f"{options.manifest}: {found.count} images, all valid")
        return 0
    skip = "; bad rows can be left out with --skip-bad (train) and --skip-bad FILE (check, split)" if found.bad else ""
    bad = f"{counted(len(faults), 'error')}, {counted(len(found.bad_lines), 'bad row')}"
    raise Faults(faults, summary=f"{options.manifest}: {bad}; fix them{skip}:")


def _of_reports(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Remarks on the reports of a manifest, and the errors of report files; both empty without reports."""
    try:
        return find_function("image_text.reports:remarks")(manifest), []
    except Faults as faults:
        return [], list(faults.faults)


def _split_faults(options: argparse.Namespace, found: Inspection) -> list[str]:
    """The errors of the split file; with ``--skip-bad``, bad rows of the manifest need not be in it."""
    from knee.data.splits import read_split

    try:
        read_split(options.split, found.manifest, without=found.bad_lines if options.skip_bad else ())
    except Faults as faults:
        return list(faults.faults)
    except UserError as error:
        return [str(error)]
    return []


def split(options: argparse.Namespace) -> int:
    """``dcmt split``."""
    from knee.data.splits import make_folds, make_split, write_split

    targets = [options.out]
    if options.folds:
        names = (f"{options.out.stem}_{number}{options.out.suffix}" for number in range(options.folds))
        targets = [options.out.with_name(name) for name in names]
    for target in targets:
        refuse_inputs(target, manifest=options.manifest, list_of_bad_rows=options.skip_bad)
    if options.skip_bad:
        refuse_inputs(options.skip_bad, manifest=options.manifest)
    found = _manifest_to_split(options)
    if options.folds:
        folds = make_folds(found.table, folds=options.folds, seed=options.seed)
        _refuse_existing(targets, force=options.force)
        for target, frame in zip(targets, folds, strict=True):
            write_split(target, frame, force=options.force)
        log.info(f"wrote {len(folds)} folds: {targets[0]} … {targets[-1].name}")
        return 0
    frame = make_split(
        found.table, fractions=tuple(options.fractions), seed=options.seed, keep=not options.from_scratch
    )
    write_split(options.out, frame, force=options.force)
    counts = "  ".join(f"{name}: {count}" for name, count in frame["split"].value_counts().items())
    kept = not options.from_scratch and "split" in found.table and found.table["split"].ne("").any()
    log.info(f"wrote {options.out} ({counts}){', keeping the splits in the manifest' if kept else ''}")
    return 0


def cache(arguments: Sequence[str]) -> int:
    """``dcmt cache``: decode the images of a grader's config into the cache, before the first training; by all processes."""
    from dcmt.config import GraderConfig
    from knee.data.prepare import load_knee_data
    from knee.engine.launch import split_options
    from knee.engine.options import asks_for_help, read_config, train_help
    from knee.nn import processes

    if asks_for_help(arguments):
        log.info(train_help(GraderConfig, program="dcmt cache", resumes=False))
        return 0
    rest, resume = split_options(arguments)
    if resume is not None:
        raise UserError("dcmt cache has nothing to resume: run it again, with the --config of the training")
    with processes.joined():
        data = load_knee_data(read_config(GraderConfig, rest, program="dcmt cache").data, graded=False)
        size = data.cache.images.shape[1]
        log.info(f"the cache holds {counted(len(data.cache.images), 'image')} of {size} x {size} pixels")
    return 0


def _manifest_to_split(options: argparse.Namespace) -> Manifest:
    """The manifest; with ``--skip-bad FILE`` without bad rows."""
    from knee.data.check import check_data, drop_bad

    grade_set = load_grade_set(options.grade_set)
    if not options.skip_bad:
        return read_manifest(options.manifest, grade_set)
    for target in (options.skip_bad, *([] if options.folds else [options.out])):
        refuse_existing(target, force=options.force)
    found = check_data(options.manifest, grade_set)
    log.info(f"{len(found.bad_lines)} of {found.count} rows are left out: {options.skip_bad}")
    return drop_bad(found, options.skip_bad, force=options.force)


def _refuse_existing(targets: list[Path], *, force: bool) -> None:
    there = [target for target in targets if target.exists()]
    if there and not force:
        raise UserError(f"{there[0]} exists already; choose another --out, or overwrite it with --force")
