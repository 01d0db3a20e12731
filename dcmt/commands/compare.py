"""``dcmt compare``: the metrics of two runs on the same cases, with paired intervals."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dcmt.trained.loaded import (
    LoadedRun,
    Rows,
    grade_rows,
    load_data,
    load_run,
    refuse_trained_images,
    with_prior_correction,
)
from knee.data.prepare import KneeData
from knee.errors import Faults, UserError
from knee.evaluation.figures import confusion_figure, save_figure
from knee.evaluation.report import difference, report
from knee.evaluation.summary import metric_table, operating_table
from knee.io.files import refuse_existing, write_json
from knee.io.tables import shortened

log = logging.getLogger(__name__)

DIFFERENCE = "second − first"


def compare_command(options: argparse.Namespace) -> int:
    """Print the metrics side by side; with ``--out`` also write them as JSON, and the confusion matrices as a figure."""
    titles = run_titles(*options.runs)
    first, second = (
        load_run(
            path,
            checkpoint=options.checkpoint,
            device=options.device,
            flip_tta=options.flip_tta,
            external_model=options.external_model,
        )
        for path in options.runs
    )
    check_comparable(first, second)
    for loaded in (first, second):
        refuse_trained_images(loaded.run.path, loaded.kind, options.split, allowed=options.trained_on)
    written = [options.out / name for name in ("comparison.json", "confusion.png")] if options.out else []
    for path in written:
        refuse_existing(path, force=options.force)
    values = compare(
        first,
        second,
        titles,
        split=options.split,
        network=options.network,
        flip=options.flip,
        prior_correction=options.prior_correction,
    )
    runs, grades = values["runs"], values["runs"][titles[0]]["grades"]
    columns = {title: runs[title]["metrics"] for title in titles} | {DIFFERENCE: values["difference"]}
    ways = (", flip TTA" if options.flip_tta else "") + (", prior correction" if options.prior_correction else "")
    log.info(
        f"{options.network} of both{ways}, {runs[titles[0]]['graded']} graded {options.split} images of "
        f"{runs[titles[0]]['graded_patients']} patients; 95% intervals, bootstrap over patients, with the same samples for both"
    )
    by_grade = [f"{name}_{grade}" for name in ("f1", "recall") for grade in range(len(grades))]
    for line in (
        *metric_table(columns),
        "F1 and recall by grade: " + ", ".join(f"{grade} {name}" for grade, name in enumerate(grades)),
        *metric_table(columns, names=by_grade)[1:],
        *operating_table(columns, grades, first.grade_set.disease_from),
    ):
        log.info(line)
    if written:
        numbers, figure = written
        write_json(numbers, values)
        confusions = {title: runs[title]["confusion"] for title in titles}
        save_figure(confusion_figure(confusions, grades), figure)
        log.info(f"metrics: {numbers}   figure: {figure}")
    return 0


def check_comparable(first: LoadedRun, second: LoadedRun) -> None:
    """Raises UserError if the runs differ in grade set, mask dilation or split file."""
    paths = f"{first.run.path} and {second.run.path}"
    # Descriptions may be reworded, but other names mean other grades.
    if first.grade_set.names != second.grade_set.names:
        raise UserError(
            f"{paths} grade by different sets ({first.grade_set.name}, {second.grade_set.name}); they cannot be compared"
        )
    dilations = [run.config.data.mask_dilation for run in (first, second)]
    if dilations[0] != dilations[1]:
        raise UserError(
            f"{paths} dilate the masks differently (data.mask_dilation {dilations[0]:g} and {dilations[1]:g}), so their TIoU "
            "cannot be compared; train both with the same dilation"
        )
    if first.checkpoint.state.get("split_sha256") != second.checkpoint.state.get("split_sha256"):
        raise UserError(
            f"{paths} were trained with different split files; train both with the same split to compare them"
        )


def run_titles(first: Path, second: Path) -> tuple[str, str]:
    """Titles of the two runs: the names of their folders, or the whole paths if the names are equal.

    >>> run_titles(Path("runs/a"), Path("runs/b")), run_titles(Path("x/a"), Path("y/a"))
    (('a', 'b'), ('x/a', 'y/a'))
    """
    if first.resolve() == second.resolve():
        raise UserError(f"{first} is given twice; name two runs")
    return (first.name, second.name) if first.name != second.name else (str(first), str(second))


def same_cases(data: KneeData, rows: Rows, others: KneeData, other_rows: Rows, split: str) -> Rows:
    """The other manifest's rows of the cases in ``rows``, in their order.

    The two manifests may be different versions, for example one with reviewed grades. The compared cases must be the same
    images of the same patients, with the same grades and masks; otherwise Faults is raised.
    """
    first, second = _facts(data, rows), _facts(others, other_rows)
    for facts, one in ((first, data), (second, others)):
        if len(again := facts.index[facts.index.duplicated()]):
            raise UserError(
                f"{one.manifest.path} has {again[0]} twice in {split}, under two names (a link?), so cases cannot be paired; "
                "remove one of them"
            )
    versions = f"{data.manifest.path.name} and {others.manifest.path.name}"
    unpaired = [f"{image}: is only in {one}" for image, one in _unpaired(first, second, data, others)]
    if unpaired:
        raise Faults(
            shortened(unpaired),
            summary=f"the {split} images of {versions} differ; fix or leave out (data.skip_bad) the same images in both",
        )
    second = second.loc[first.index]
    differ = [
        f"{image}: {column} is {before or 'none'} and {after or 'none'}"
        for column in ("grade", "patient", "mask")
        for image, before, after in zip(first.index, first[column], second[column], strict=True)
        if before != after
    ]
    if differ:
        raise Faults(
            shortened(differ),
            summary=f"the {split} cases of {versions} differ; train both runs on manifests with equal grades, patients, masks",
        )
    return second["row"].to_numpy()


def _facts(data: KneeData, rows: Rows) -> pd.DataFrame:
    """Facts that must be equal for each case, as text by resolved image path, whatever folder the manifest is in."""
    table, manifest = data.manifest.table.iloc[rows], data.manifest
    masks = [manifest.mask_path(row) for row in rows.tolist()]
    return pd.DataFrame(
        {
            "row": rows,
            "grade": ["" if pd.isna(grade) else str(grade) for grade in table["grade"]],
            "patient": table["patient"].to_numpy(),
            "mask": ["" if mask is None else str(mask.resolve()) for mask in masks],
        },
        index=[str(manifest.image_path(row).resolve()) for row in rows.tolist()],
    )


def _unpaired(first: pd.DataFrame, second: pd.DataFrame, data: KneeData, others: KneeData) -> Iterator[tuple[str, str]]:
    """Images that are in one manifest only, with the name of that manifest."""
    for one, other, name in ((first, second, data.manifest.path.name), (second, first, others.manifest.path.name)):
        yield from ((image, name) for image in one.index.difference(other.index))


def compare(
    first: LoadedRun,
    second: LoadedRun,
    titles: tuple[str, str],
    *,
    split: str,
    network: str,
    flip: bool,
    prior_correction: bool = False,
) -> dict[str, Any]:
    """``runs``: both reports under their titles, and ``difference``: the second minus the first with paired intervals."""
    for loaded in (first, second):
        if network not in loaded.networks:
            raise UserError(f"{loaded.run.path} has no {network}; compare the teachers with --network teacher")
    data = load_data(first)
    others = load_data(second)
    if prior_correction:
        first, second = with_prior_correction(first, data), with_prior_correction(second, others)
    rows = data.rows(split)
    if not len(rows):
        raise UserError(f"the split has no {split} images; compare on another by --split")
    same = same_cases(data, rows, others, others.rows(split), split)
    grades, patients = data.manifest.table["grade"].iloc[rows], data.patients.iloc[rows]
    found = [
        grade_rows(loaded, images, chosen, flip=flip and not loaded.flip_tta, names=[network])[network]
        for loaded, images, chosen in ((first, data, rows), (second, others, same))
    ]
    # Cases are paired by row number of the first run's manifest.
    found[1] = replace(found[1], rows=found[0].rows)
    samples = first.config.report.bootstrap
    return {
        "split": split,
        "network": network,
        "flip_tta": first.flip_tta,
        "prior_corrected": first.prior_corrected,
        "first": titles[0],
        "second": titles[1],
        "runs": {
            title: report(one, grades, patients, data.grade_set, samples=samples)
            for title, one in zip(titles, found, strict=True)
        },
        "difference": difference(found[0], found[1], grades, patients, data.grade_set, samples=samples),
    }
