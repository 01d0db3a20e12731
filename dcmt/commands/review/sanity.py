"""``dcmt review sanity``: do the maps depend on what was learned, and do they lie on the cartilage."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
import pandas as pd
import torch

from clip_koa.model import ClipGrader
from clip_koa.probe import ProbeGrader
from dcmt.commands.review.files import sanity_path
from dcmt.loaded import LoadedRun, Rows, best_reachable, grade_rows, load_data, load_run
from dcmt.validation import spread_over_grades
from knee.data.prepare import KneeData
from knee.errors import UserError
from knee.evaluation.figures import save_figure
from knee.io.files import write_json
from knee.metrics import exceeded_share
from knee.review.sanity import sanity_figure, weight_randomisation

log = logging.getLogger(__name__)


def sanity_command(options: argparse.Namespace) -> int:
    """Randomise the teacher's weights from the top down: table, ``figures/sanity.png`` and ``sanity.json``."""
    for name in ("steps", "images"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    loaded = load_run(
        options.run, checkpoint=options.checkpoint, device=options.device, external_model=options.external_model
    )
    data = load_data(loaded)
    rows = data.rows(options.split)
    if not len(rows):
        raise UserError(f"there are no {options.split} images; choose another --split")
    grades = np.full(len(data.grades), -1) if options.split == "unlabeled" else data.grades
    shown = spread_over_grades(rows, grades, count=min(options.images, len(rows)))
    images = torch.from_numpy(np.array(data.cache.images[shown]))[:, None].float() / 255
    teacher = loaded.networks["teacher"]
    # The texts are the question, and those of a trained run are computed once: shuffling their encoder would change nothing.
    # A probe has texts that it does not look at.
    unused = ("grader.text_tower.", "grader.scale.") if isinstance(teacher, ProbeGrader) else ()
    keep = ("text_tower.",) if isinstance(teacher, ClipGrader) else unused
    table = weight_randomisation(teacher, images.to(loaded.device), steps=options.steps, keep=keep)
    overlap = cartilage_overlap(loaded, data, rows)
    figure, record = sanity_path(loaded.run), loaded.run.path / "sanity.json"
    save_figure(sanity_figure(table), figure)
    head: dict[str, Any] = {"split": options.split, "checkpoint_step": loaded.checkpoint.step, "images": len(shown)}
    write_json(record, {**head, "randomisation": table.to_dict("records"), "overlap": overlap})
    for line in sanity_lines(table, overlap, len(shown)):
        log.info(line)
    log.info(f"figure: {figure}   numbers: {record}; the next dcmt review export links the figure")
    return 0


def cartilage_overlap(loaded: LoadedRun, data: KneeData, rows: Rows) -> dict[str, Any] | None:
    """TIoU of each network's attention on the rows that have a mask; None where none has."""
    rows = rows[data.cache.has_mask[rows]]
    if not len(rows):
        return None
    found = grade_rows(loaded, data, rows)
    tiou = {
        name: float(np.nanmean(exceeded_share(one.iou))) for name, one in found.items() if not np.isnan(one.iou).all()
    }
    return {"masks": len(rows), "tiou": tiou, "best_iou_of_grid": best_reachable(loaded, data, rows)}


def sanity_lines(table: pd.DataFrame, overlap: dict[str, Any] | None, images: int) -> list[str]:
    """The table and what it says."""
    lines = [f"{'random weights':>14}  {'down to':30}{'correlation':>12}{'SSIM':>8}{'empty':>8}"]
    for row in table.to_dict("records"):
        lines.append(
            f"{row['share']:>14.0%}  {row['from_layer']:30.30}{row['correlation']:>12.2f}{row['ssim']:>8.2f}"
            f"{row['empty']:>8.0%}"
        )
    last = float(table["correlation"].to_numpy(np.float64)[-1])
    lines.append(
        f"{images} images: with all weights that see the image shuffled, the maps' rank correlation with the intact ones is "
        f"{last:.2f}; near 0 is what maps that show what was learned fall to"
    )
    if overlap is None:
        return [*lines, "no image of the split has a mask: no overlap with the cartilage is known"]
    tiou = ", ".join(f"{name} {value:.3f}" for name, value in overlap["tiou"].items())
    best = overlap["best_iou_of_grid"]
    return [*lines, f"TIoU on {overlap['masks']} masks: {tiou} (the map's grid could reach a mean IoU of {best:.3f})"]
