"""``dcmt review sanity``: whether maps depend on the learned weights, and their overlap with the cartilage."""

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
from dcmt.commands.selection import Selection, select
from dcmt.trained.loaded import best_reachable, grade_rows
from knee.errors import UserError
from knee.evaluation.figures import save_figure
from knee.io.files import write_json
from knee.metrics import exceeded_share
from knee.nn.padding import as_input
from knee.review.sanity import sanity_figure, weight_randomisation

log = logging.getLogger(__name__)


def sanity_command(options: argparse.Namespace) -> int:
    """Randomise the teacher's weights from the top down: table, ``figures/sanity.png`` and ``sanity.json``."""
    for name in ("steps", "images"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    chosen = select(options)
    loaded, data = chosen.loaded, chosen.data
    shown = chosen.spread(options.images).rows
    images = as_input(torch.from_numpy(np.array(data.cache.images[shown]))[:, None])
    teacher = loaded.bare["teacher"]
    # Text embeddings of a trained run are computed only once, so shuffling the text encoder would change nothing. A probe does
    # not use texts at all.
    unused = ("grader.text_tower.", "grader.scale.") if isinstance(teacher, ProbeGrader) else ()
    keep = ("text_tower.",) if isinstance(teacher, ClipGrader) else unused
    table = weight_randomisation(teacher, images.to(loaded.device), steps=options.steps, keep=keep)
    overlap = cartilage_overlap(chosen)
    figure, record = sanity_path(loaded.run), loaded.run.path / "sanity.json"
    save_figure(sanity_figure(table), figure)
    head: dict[str, Any] = {"split": options.split, "checkpoint_step": loaded.checkpoint.step, "images": len(shown)}
    write_json(record, {**head, "randomisation": table.to_dict("records"), "overlap": overlap})
    for line in sanity_lines(table, overlap, len(shown)):
        log.info(line)
    log.info(f"figure: {figure}   numbers: {record}; the next dcmt review export links the figure")
    return 0


def cartilage_overlap(chosen: Selection) -> dict[str, Any] | None:
    """TIoU of each network's attention on the rows with a mask; None if there are none."""
    loaded, data = chosen.loaded, chosen.data
    rows = chosen.rows[data.cache.has_mask[chosen.rows]]
    if not len(rows):
        return None
    found = grade_rows(loaded, data, rows)
    tiou = {
        name: float(np.nanmean(exceeded_share(one.iou))) for name, one in found.items() if not np.isnan(one.iou).all()
    }
    return {"masks": len(rows), "tiou": tiou, "best_iou_of_grid": best_reachable(loaded, data, rows)}


def sanity_lines(table: pd.DataFrame, overlap: dict[str, Any] | None, images: int) -> list[str]:
    """The table and its interpretation, as lines to print."""
    lines = [f"{'random weights':>14}  {'down to':30}{'correlation':>12}{'SSIM':>8}{'empty':>8}"]
    for row in table.to_dict("records"):
        lines.append(
            f"{row['share']:>14.0%}  {row['from_layer']:30.30}{row['correlation']:>12.2f}{row['ssim']:>8.2f}"
            f"{row['empty']:>8.0%}"
        )
    last = float(table["correlation"].to_numpy(np.float64)[-1])
    lines.append(
        f"{images} images: with all image weights shuffled, the rank correlation with the original maps is {last:.2f}; "
        "it falls to about 0 if maps depend on what was learned"
    )
    if overlap is None:
        return [*lines, "no image of the split has a mask, so the overlap with the cartilage is unknown"]
    tiou = ", ".join(f"{name} {value:.3f}" for name, value in overlap["tiou"].items())
    best = overlap["best_iou_of_grid"]
    return [
        *lines,
        f"TIoU on {overlap['masks']} masks: {tiou} (the grid of the maps can reach a mean IoU of {best:.3f})",
    ]
