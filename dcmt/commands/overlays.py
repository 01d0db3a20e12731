"""``dcmt attention``: overlays of the attention of student and teacher."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcmt.commands.selection import Selection, select
from knee.evaluation.pictures import case_pictures
from knee.intake.scan import claim_folder
from knee.io.files import refuse_existing

log = logging.getLogger(__name__)


def attention_command(options: argparse.Namespace) -> int:
    """Write one PNG for each case, named by case, and a contact sheet, for a split or the unlabeled images.

    With ``--force`` overlays of other cases of this data in the folder are removed once the new ones are written.
    """
    chosen = select(options)
    if options.cases:
        chosen = chosen.spread(options.cases)
    folder: Path = options.out or chosen.loaded.run.path / f"attention_{options.split}"
    sheet = folder / "sheet.png"
    refuse_existing(sheet, force=options.force)
    for note in claim_folder(folder) if options.out else []:
        log.info(note)
    shown = _write_overlays(chosen, folder, sheet, force=options.force)
    log.info(f"{len(chosen.rows)} overlays in {folder}; contact sheet of {shown}: {sheet}")
    if options.force and (earlier := _remove_others(chosen, folder)):
        log.info(f"{earlier} earlier overlays of other cases were removed")
    return 0


def _write_overlays(chosen: Selection, folder: Path, sheet: Path, *, force: bool) -> int:
    """Write one picture for each row, and a contact sheet of some; returns the number on the sheet."""
    from knee.evaluation.overlays import contact_sheet
    from knee.images.read import write_png

    data, grades, names = chosen.data, chosen.grades, chosen.data.grade_set.names
    captions = {
        row: f"{case}  " + (f"reader: {grades[row]} {names[grades[row]]}" if grades[row] >= 0 else "ungraded")
        for row, case in chosen.cases.items()
    }
    on_sheet = set(chosen.spread(12).rows.tolist())
    shown: list[NDArray[np.uint8]] = []
    for one in case_pictures(
        chosen.loaded.networks,
        data.loader(chosen.rows),
        grade_set=data.grade_set,
        captions=captions,
        sources=data.source,
        device=chosen.loaded.device,
        precision=chosen.loaded.precision,
        attention=chosen.loaded.config.attention,
        masks=data.masks,
        has_mask=data.cache.has_mask,
    ):
        write_png(folder / f"{chosen.cases[one.row]}.png", one.picture, force=force)
        if one.row in on_sheet:
            shown.append(one.panel)
    cartilage = bool(data.cache.has_mask[chosen.rows].any())
    write_png(sheet, contact_sheet(shown, columns=2, cartilage=cartilage), force=force)
    return len(shown)


def _remove_others(chosen: Selection, folder: Path) -> int:
    """Remove overlays of other cases of this data; returns their number."""
    others = set(chosen.data.cases(np.arange(len(chosen.data.grades)))) - set(chosen.cases.values())
    earlier = [path for case in sorted(others) if (path := folder / f"{case}.png").is_file()]
    for path in earlier:
        path.unlink()
    return len(earlier)
