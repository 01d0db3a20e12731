"""``dcmt attention``: overlays of where student and teacher looked."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcmt.loaded import load_data, load_run
from dcmt.validation import spread_over_grades
from knee.errors import UserError
from knee.evaluation.pictures import case_pictures
from knee.intake.scan import claim_folder
from knee.io.files import refuse_existing

log = logging.getLogger(__name__)


def attention_command(options: argparse.Namespace) -> int:
    """``dcmt attention``: a PNG a case and a contact sheet, named by case, for a split or the unlabeled images.

    With ``--force`` overlays of other cases of this data that lay there go, once the new ones are there.
    """
    from knee.evaluation.overlays import contact_sheet
    from knee.images.read import write_png

    loaded = load_run(
        options.run, checkpoint=options.checkpoint, device=options.device, external_model=options.external_model
    )
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
        log.info(note)
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
    log.info(f"{len(rows)} overlays in {folder}; {len(shown)} of them together: {sheet}")
    others = set(data.cases(np.arange(len(data.grades)))) - set(cases.values())
    earlier = [path for case in sorted(others) if (path := folder / f"{case}.png").is_file()] if options.force else []
    for path in earlier:
        path.unlink()
    if earlier:
        log.info(f"{len(earlier)} earlier overlays, of cases that are not among these, were removed")
    return 0
