"""``dcmt evaluate``: evaluate student and teacher on a split, with intervals, figures and predictions."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcmt.trained.loaded import (
    GRID_MASKS,
    LoadedRun,
    Rows,
    best_reachable,
    grade_rows,
    load_data,
    load_run,
    manifest_changed,
    masks_by_segmenter,
    refuse_trained_images,
    row_marks,
    with_prior_correction,
    with_reference,
)
from dcmt.trained.reference import Marks
from knee.data.prepare import KneeData
from knee.engine.run import is_trained
from knee.errors import UserError
from knee.evaluation.by_knee import knee_grades, knee_predictions
from knee.evaluation.predictions import Predictions
from knee.evaluation.report import difference, predictions_table, report
from knee.evaluation.summary import grade_table, metric_table, operating_table
from knee.io.files import write_json
from knee.nn import processes

log = logging.getLogger(__name__)


def evaluate_command(options: argparse.Namespace) -> int:
    """``dcmt evaluate``: ``metrics_SPLIT.json``, figures, ``local/predictions_SPLIT.csv``, and a table on the console."""
    split: str = options.split
    loaded = load_run(
        options.run,
        checkpoint=options.checkpoint,
        device=options.device,
        flip_tta=options.flip_tta,
        external_model=options.external_model,
    )
    refuse_trained_images(loaded.run.path, loaded.kind, split, allowed=options.trained_on)
    data = load_data(loaded)
    if options.prior_correction:
        loaded = with_prior_correction(loaded, data)
    rows = data.rows(split)
    if not len(rows):
        raise UserError(f"the split has no {split} images; evaluate another with --split")
    loaded = with_reference(loaded, data)
    # With flip TTA an image and its flip get the same prediction, so flips need not be graded.
    found = grade_rows(loaded, data, rows, flip=options.flip and not loaded.flip_tta)
    unlike = row_marks(loaded, data, rows)
    if not processes.is_first():
        return 0
    reports = make_reports(loaded, found, data, rows)
    origin = {
        "split": split,
        "checkpoint_step": loaded.checkpoint.step,
        "trained_on": split == "train" and is_trained(loaded.kind),
        "flip_tta": loaded.flip_tta,
        "prior_corrected": loaded.prior_corrected,
        "manifest_changed": manifest_changed(loaded, data),
        "left_out": data.split.absent[split],
        "best_iou_of_grid": best_reachable(loaded, data, rows),
        "masks_by_segmenter": masks_by_segmenter(data, rows),
        "unlike_training": None if unlike is None else int(sum(map(bool, unlike.reasons))),
    }
    write_json(loaded.run.metrics(split), {**origin, **reports})
    write_predictions(loaded.run.predictions(split), found, data, rows, unlike)
    draw_figures(loaded, found, data, rows, split=split)
    knees = evaluate_knees(loaded, found["teacher"], data, rows, split=split)
    for line in summary(origin, reports, list(found), data):
        log.info(line)
    for line in knees:
        log.info(line)
    log.info(
        f"metrics: {loaded.run.metrics(split)}   predictions: {loaded.run.predictions(split)}   figures: {loaded.run.figures}"
    )
    return 0


def make_reports(
    loaded: LoadedRun, found: Mapping[str, Predictions], data: KneeData, rows: Rows
) -> dict[str, dict[str, Any]]:
    """The report of each network, and the differences of the teacher minus each other network (paired intervals)."""
    samples = loaded.config.report.bootstrap
    grades, patients = data.manifest.table["grade"].iloc[rows], data.patients.iloc[rows]
    reports: dict[str, dict[str, Any]] = {
        name: report(one, grades, patients, data.grade_set, samples=samples, temperature=loaded.temperature(name))
        for name, one in found.items()
    }
    for name, one in found.items():
        if name != "teacher":
            reports[f"teacher_minus_{name}"] = difference(
                one, found["teacher"], grades, patients, data.grade_set, samples=samples
            )
    return reports


def write_predictions(
    target: Path, found: Mapping[str, Predictions], data: KneeData, rows: Rows, unlike: Marks | None
) -> None:
    """Write the predictions, one row for each case: first the teacher's, then those of other networks. Names patients."""
    table = predictions_table(
        found["teacher"],
        cases=data.cases(rows),
        images=data.manifest.table["image"].iloc[rows].tolist(),
        grades=data.manifest.table["grade"].iloc[rows],
        others={name: one for name, one in found.items() if name != "teacher"},
    )
    # ``dcmt verify`` uses these patients, so that it works after changes to the manifest.
    table.insert(2, "patient", data.patients.iloc[rows].to_numpy())
    if unlike is not None:
        table["familiarity"], table["unlike_training"] = unlike.familiarity, unlike.reasons
    table.to_csv(target, index=False)
    target.chmod(0o600)


def evaluate_knees(loaded: LoadedRun, slices: Predictions, data: KneeData, rows: Rows, *, split: str) -> list[str]:
    """If there are volumes: ``metrics_by_knee_SPLIT.json`` of the teacher, and lines that sum it up; else nothing.

    ``mean`` grades a knee by the mean probabilities of its slices, ``severest`` by its most severe ones; their difference is
    paired. A knee has the highest grade of its slices.
    """
    series = data.series(rows)
    if not any(series):
        return []
    found = {
        name: knee_predictions(slices, series, severest=name == "severest", decision=data.grade_set.decision)
        for name in ("mean", "severest")
    }
    of_knees = found["mean"].rows
    highest, patients = knee_grades(data.grades[rows], series), data.patients.iloc[of_knees]
    grades = np.where(highest < 0, np.nan, highest)
    options: dict[str, Any] = {"samples": loaded.config.report.bootstrap}
    reports: dict[str, Any] = {
        name: report(one, grades, patients, data.grade_set, **options) for name, one in found.items()
    }
    reports["severest_minus_mean"] = difference(
        found["mean"], found["severest"], grades, patients, data.grade_set, **options
    )
    used = "severest" if loaded.pools_severest else "mean"
    path = loaded.run.metrics(f"by_knee_{split}")
    write_json(path, {"split": split, "checkpoint_step": loaded.checkpoint.step, "used": used, **reports})
    shown = {name: reports[name]["metrics"] for name in found}
    head = f"{reports['mean']['graded']} graded knees of {len(rows)} images, by the teacher; dcmt predict uses {used}"
    return [head, *metric_table(shown), f"{'':18}metrics by knee: {path}"]


def draw_figures(
    loaded: LoadedRun, found: Mapping[str, Predictions], data: KneeData, rows: Rows, *, split: str
) -> None:
    """Confusion matrices, reliability and ROC as PNG in the run's ``figures``; none if no case is graded."""
    from knee.evaluation.figures import confusion_figure, reliability_figure, roc_figure, save_figure
    from knee.metrics import confusion

    graded = data.grades[rows] >= 0
    if not graded.any():
        return
    grades, names = data.grades[rows][graded], data.grade_set.names
    counts = {name: confusion(grades, one.predicted[graded], len(names)) for name, one in found.items()}
    probabilities = {name: one.probabilities[graded] for name, one in found.items()}
    folder = loaded.run.figures
    save_figure(confusion_figure(counts, names), folder / f"confusion_{split}.png")
    save_figure(reliability_figure(probabilities, grades), folder / f"reliability_{split}.png")
    save_figure(roc_figure(probabilities["teacher"], grades, names), folder / f"roc_{split}.png")


def summary(origin: Mapping[str, Any], reports: Mapping[str, Any], names: Sequence[str], data: KneeData) -> list[str]:
    """The printed summary: metrics of the networks ``names`` with intervals, and those of the last network by grade."""
    last, grid = reports[names[-1]], origin["best_iou_of_grid"]
    lines = []
    if origin["left_out"]:
        left_out = f"{origin['left_out']} {origin['split']} images of {data.split.path}"
        lines.append(f"{left_out} are left out: not in the manifest, or bad rows")
    if origin["flip_tta"]:
        lines.append("flip TTA: predictions are averaged over each image and its horizontal flip")
    if origin["prior_corrected"]:
        lines.append("predictions are corrected for the distribution of the training labels")
    lines += [
        f"{last['graded']} graded images of {last['graded_patients']} patients; {last['interval']['level']:.0%} intervals, "
        "bootstrap over patients",
        *metric_table({name: reports[name]["metrics"] for name in names}),
    ]
    if grid is not None:
        masks = f"{GRID_MASKS} of these {last['with_mask']}" if last["with_mask"] > GRID_MASKS else "these"
        lines.append(f"{'':18}the best IoU that the attention grid can reach on {masks} masks is {grid:.3f}")
    if last["graded"]:
        lines += grade_table(last)
        shown = {name: reports[name]["metrics"] for name in names}
        lines += operating_table(shown, last["grades"], data.grade_set.disease_from)
    if last["temperature"] is not None:
        lines.append(
            f"{'':18}probabilities are calibrated on the validation images: temperature "
            + ", ".join(f"{reports[name]['temperature']:.3f} ({name})" for name in names)
            + "; ece_uncalibrated is that before"
        )
    if origin["unlike_training"]:
        lines.append(
            f"{'':18}{origin['unlike_training']} of the images are unlike the training images (column unlike_training); "
            "dcmt predict would not grade them"
        )
    if origin["masks_by_segmenter"]:
        lines.append(
            f"{'':18}{origin['masks_by_segmenter']} of the masks were predicted by a segmenter: on these, TIoU measures "
            "agreement with the segmenter, not with a reader"
        )
    return lines
