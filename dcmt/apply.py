"""What is done with a trained run: ``dcmt evaluate``, ``predict`` and ``attention``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clip_koa.model import ClipGrader
from clip_koa.probe import blank_probe
from dcmt.checkpoint import Checkpoint
from dcmt.config import GraderConfig
from dcmt.device import autocast_type, choose_device, flush_denormals
from dcmt.options import config_from_values
from dcmt.pictures import case_pictures
from dcmt.prepare import KneeData, load_knee_data
from dcmt.run import RunFolder, file_hash, is_trained, open_run, other_split, require_paths
from dcmt.summary import grade_table, metric_table
from dcmt.train import build_grader
from dcmt.validation import spread_over_grades
from knee.errors import UserError
from knee.evaluate import difference, predictions_table, report
from knee.files import refuse_existing, write_json
from knee.flips import MirroredPair
from knee.grades import GradeSet, load_grade_set
from knee.predictions import Predictions, predict
from knee.scan import claim_folder

Say = Callable[[str], None]
Rows = NDArray[np.int64]
GRID_MASKS = 128
"""How many masks, at most, the best IoU that the attention's grid can reach is climbed to on."""
KINDS = ("grader", "zeroshot", "probe")
"""The kinds of run that grade: trained by ``dcmt train``, or of weights that were not trained for it."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained run: its config and its networks in eval mode on the device."""

    run: RunFolder
    kind: str
    """One of ``KINDS``."""
    config: GraderConfig
    checkpoint: Checkpoint
    grade_set: GradeSet
    networks: Mapping[str, nn.Module]
    """Student and teacher; a run that trained no pair has its one network as the teacher."""
    device: torch.device
    mirrored_pair: bool = False
    """The networks answer with the mean for an image and its mirror image (`MirroredPair`)."""

    @property
    def precision(self) -> torch.dtype | None:
        """The autocast type the run was trained with."""
        return autocast_type(self.checkpoint.precision)


def load_run(path: Path, *, checkpoint: str, device: str, mirrored_pair: bool = False) -> LoadedRun:
    """Open a grader's run folder. Raises UserError where it is none, or has no checkpoint.

    With ``mirrored_pair`` its networks are asked about an image and its mirror image, and answer with the mean.
    """
    flush_denormals()
    run, values = open_run(path)
    kind = values.pop("kind")
    if kind not in KINDS:
        raise UserError(f"{path} is a run of kind {kind}; this command needs a grader's run")
    config: GraderConfig = config_from_values(GraderConfig, values, where=str(run.config))
    if mirrored_pair and kind == "grader" and not _sees_mirror_images(config):
        sys.stderr.write(
            f"note: {path} was trained without mirror images (views.horizontal_flip 0), so --mirrored-pair asks about "
            "images of a kind that it never saw\n"
        )
    if checkpoint == "best":
        found = run.checkpoints.best()
    else:
        found, damaged = run.checkpoints.latest()
        for fault in damaged:
            sys.stderr.write(f"warning: {fault}; taking the checkpoint before it\n")
    if found is None:
        raise UserError(f"{path} has no whole checkpoint yet; train it first: python train.py --resume {path}")
    require_paths(run, config, "data.grade_set")
    grade_set = load_grade_set(config.data.grade_set)
    chosen = choose_device(device)
    networks: dict[str, nn.Module] = {}
    for name in ("student", "teacher"):
        if f"{name}.safetensors" not in found.state["sha256"]:
            continue
        network = build_grader(config, grade_set, fresh=False)
        if kind == "probe":
            network = blank_probe(network, grade_set)
        found.load_network(name, network)
        if isinstance(network, ClipGrader):
            network.freeze_text()
        network = network.to(chosen).eval()
        networks[name] = MirroredPair(network) if mirrored_pair else network
    return LoadedRun(run, kind, config, found, grade_set, networks, chosen, mirrored_pair)


def _sees_mirror_images(config: GraderConfig) -> bool:
    """Whether training shows the networks images and mirror images."""
    return bool(config.views.horizontal_flip or config.loss.symmetry or config.loss.flip_consistency)


def load_data(loaded: LoadedRun) -> KneeData:
    """The data a run was trained on, by the paths in its config.

    Refuses another split than the one trained with: its test images may have been trained on.
    """
    require_paths(loaded.run, loaded.config, "data.manifest", "data.split")
    data = load_knee_data(
        loaded.config.data,
        rejected=loaded.run.local / "rejected.csv",
        salt_folder=loaded.run.local,
        graded=is_trained(loaded.kind),
    )
    if other_split(loaded.checkpoint.state, data.split.path):
        raise UserError(
            f"{data.split.path} changed since {loaded.run.path} was trained, so its images may have been trained on; the split "
            f"it was trained with is {loaded.run.local / 'split.csv'}: put that back"
        )
    if manifest_changed(loaded, data):
        sys.stderr.write(
            f"note: {data.manifest.path} changed since {loaded.run.path} was trained; its rows count as they are now\n"
        )
    return data


def manifest_changed(loaded: LoadedRun, data: KneeData) -> bool:
    """Whether the manifest is not the one that the run was trained on, which may be meant: grades are corrected."""
    trained_with = loaded.checkpoint.state.get("manifest_sha256")
    return trained_with is not None and trained_with != file_hash(data.manifest.path)


def grade_rows(
    loaded: LoadedRun, data: KneeData, rows: Rows, *, flip: bool = False, names: Sequence[str] = ("student", "teacher")
) -> dict[str, Predictions]:
    """What each network of those named says of the rows, with the overlap of its attention and the masks."""
    return {
        name: predict(
            network,
            data.loader(rows),
            device=loaded.device,
            precision=loaded.precision,
            masks=data.masks,
            has_mask=data.cache.has_mask,
            sharpness=loaded.config.attention.sharpness,
            threshold=loaded.config.attention.threshold,
            flip=flip,
        )
        for name, network in loaded.networks.items()
        if name in names
    }


def refuse_trained_images(run: Path, kind: str, split: str, *, allowed: bool) -> None:
    """Raises UserError where a network would be judged by images that it was trained on, unless that is asked for."""
    if split == "train" and is_trained(kind) and not allowed:
        raise UserError(
            f"{run} was trained on the images of --split train (on unlabeled ones too), so how it grades them says "
            "how well it remembers, not how good it is; evaluate --split val or test, or add --trained-on to see it anyway"
        )


def evaluate_command(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt evaluate``: ``metrics_SPLIT.json``, figures, ``local/predictions_SPLIT.csv``, and a table on the console."""
    loaded = load_run(
        options.run, checkpoint=options.checkpoint, device=options.device, mirrored_pair=options.mirrored_pair
    )
    refuse_trained_images(loaded.run.path, loaded.kind, options.split, allowed=options.trained_on)
    data = load_data(loaded)
    rows = data.rows(options.split)
    if not len(rows):
        raise UserError(f"the split has no {options.split} images; evaluate another by --split")
    # A mirrored pair gives its mirror image the same answer.
    found = grade_rows(loaded, data, rows, flip=options.flip and not loaded.mirrored_pair)
    grades, patients = data.manifest.table["grade"].iloc[rows], data.patients.iloc[rows]
    samples = loaded.config.report.bootstrap
    reports: dict[str, Any] = {
        name: report(one, grades, patients, data.grade_set, samples=samples) for name, one in found.items()
    }
    others = {name: one for name, one in found.items() if name != "teacher"}
    for name, one in others.items():
        reports[f"teacher_minus_{name}"] = difference(
            one, found["teacher"], grades, patients, data.grade_set, samples=samples
        )
    missing = data.split.absent[options.split]
    grid, written = best_reachable(loaded, data, rows), masks_by_segmenter(data, rows)
    write_json(
        loaded.run.metrics(options.split),
        {
            "split": options.split,
            "checkpoint_step": loaded.checkpoint.step,
            "trained_on": options.split == "train" and is_trained(loaded.kind),
            "mirrored_pair": loaded.mirrored_pair,
            "manifest_changed": manifest_changed(loaded, data),
            "left_out": missing,
            "best_iou_of_grid": grid,
            "masks_by_segmenter": written,
            **reports,
        },
    )
    table = predictions_table(
        found["teacher"],
        cases=data.cases(rows),
        images=data.manifest.table["image"].iloc[rows].tolist(),
        grades=grades,
        others=others,
    )
    # Verified against these, whatever becomes of the manifest.
    table.insert(2, "patient", patients.to_numpy())
    target = loaded.run.predictions(options.split)
    table.to_csv(target, index=False)
    target.chmod(0o600)
    draw_figures(loaded, found, data, rows, split=options.split)
    if missing:
        say(f"{missing} {options.split} images of {data.split.path} are left out: not in the manifest, or bad rows")
    if loaded.mirrored_pair:
        say("mirrored-pair prediction: the mean of the answers to an image and to its mirror image")
    for line in summary(reports, list(found), grid):
        say(line)
    if written:
        say(
            f"{'':18}{written} of the masks were written by a segmenter: TIoU there is agreement with it, not with a reader"
        )
    say(f"metrics: {loaded.run.metrics(options.split)}   predictions: {target}   figures: {loaded.run.figures}")
    return 0


def best_reachable(loaded: LoadedRun, data: KneeData, rows: Rows) -> float | None:
    """The mean of the best IoU that the attention's grid could reach on the masks of ``rows``; None without masks.

    Of more than ``GRID_MASKS`` masks, those at equal distances are looked at.
    """
    from knee.evaluate import best_grid_iou

    rows = rows[data.cache.has_mask[rows]]
    if not len(rows):
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(GRID_MASKS, len(rows))).round().astype(int)]
    size = loaded.config.data.image_size
    with torch.no_grad():
        maps = loaded.networks["teacher"](torch.zeros(1, 1, size, size, device=loaded.device)).class_maps
    return round(float(np.nanmean(best_grid_iou(data.masks[rows], (maps.shape[2], maps.shape[3])))), 4)


def masks_by_segmenter(data: KneeData, rows: Rows) -> int:
    """How many of ``rows`` have a mask that no person drew."""
    return int((data.cache.has_mask[rows] & data.manifest.by_segmenter[rows]).sum())


def draw_figures(
    loaded: LoadedRun, found: Mapping[str, Predictions], data: KneeData, rows: Rows, *, split: str
) -> None:
    """Confusion matrices, reliability and ROC as PNG in the run's ``figures``; nothing where no case is graded."""
    from dcmt.validation import confusion
    from knee.figures import confusion_figure, reliability_figure, roc_figure, save_figure

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


def summary(reports: Mapping[str, Any], names: Sequence[str], grid: float | None) -> list[str]:
    """The tables of an evaluation: the networks called ``names`` with their intervals, and the last one grade by grade."""
    last = reports[names[-1]]
    lines = [
        f"{last['graded']} graded images of {last['graded_patients']} patients; {last['interval']['level']:.0%} intervals, "
        "bootstrap over patients",
        *metric_table({name: reports[name]["metrics"] for name in names}),
    ]
    if grid is not None:
        masks = f"{GRID_MASKS} of these {last['with_mask']}" if last["with_mask"] > GRID_MASKS else "these"
        lines.append(f"{'':18}the best IoU the attention grid can reach on {masks} masks is {grid:.3f}")
    return [*lines, *grade_table(last)] if last["graded"] else lines


def attention_command(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt attention``: a PNG a case and a contact sheet, named by case, for a split or the unlabeled images.

    With ``--force`` overlays of other cases of this data that lay there go, once the new ones are there.
    """
    from knee.images import write_png
    from knee.overlays import contact_sheet

    loaded = load_run(options.run, checkpoint=options.checkpoint, device=options.device)
    data = load_data(loaded)
    rows = data.rows(options.split)
    # An unlabeled image may have a grade in the manifest; it plays no part here.
    grades = np.full(len(data.grades), -1) if options.split == "unlabeled" else data.grades
    if options.cases and options.cases < len(rows):
        rows = spread_over_grades(rows, grades, count=options.cases)
    if not len(rows):
        raise UserError(f"there are no {options.split} images")
    folder: Path = options.out or loaded.run.path / f"attention_{options.split}"
    sheet = folder / "sheet.png"
    refuse_existing(sheet, force=options.force)
    cases = dict(zip(rows.tolist(), data.cases(rows), strict=True))
    names = data.grade_set.names
    captions = {
        row: f"{case}  " + (f"reader: {grades[row]} {names[grades[row]]}" if grades[row] >= 0 else "ungraded")
        for row, case in cases.items()
    }
    for note in claim_folder(folder) if options.out else []:
        say(note)
    on_sheet = set(spread_over_grades(rows, grades, count=12).tolist())
    shown: list[NDArray[np.uint8]] = []
    for one in case_pictures(
        loaded.networks,
        data.loader(rows),
        names=names,
        captions=captions,
        device=loaded.device,
        precision=loaded.precision,
        attention=loaded.config.attention,
        masks=data.masks,
        has_mask=data.cache.has_mask,
    ):
        write_png(folder / f"{cases[one.row]}.png", one.picture, force=options.force)
        if one.row in on_sheet:
            shown.append(one.panel)
    cartilage = bool(data.cache.has_mask[rows].any())
    write_png(sheet, contact_sheet(shown, columns=2, cartilage=cartilage), force=options.force)
    say(f"{len(rows)} overlays in {folder}; {len(shown)} of them together: {sheet}")
    others = set(data.cases(np.arange(len(data.grades)))) - set(cases.values())
    earlier = [path for case in sorted(others) if (path := folder / f"{case}.png").is_file()] if options.force else []
    for path in earlier:
        path.unlink()
    if earlier:
        say(f"{len(earlier)} earlier overlays, of cases that are not among these, were removed")
    return 0
