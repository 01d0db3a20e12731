"""``dcmt crop``: one image per knee from films of both legs, and from long or off-center views."""

from __future__ import annotations

import argparse
import csv
import io
import logging
from pathlib import Path

from knee.data.manifest import write_manifest
from knee.errors import Faults, UserError, counted
from knee.grades import load_grade_set
from knee.intake.crop.write import crop_images
from knee.intake.folders import manifest_from_folder
from knee.intake.scan import claim_folder
from knee.io.files import typed, write_text
from knee.io.tables import shortened, spreadsheet_text

log = logging.getLogger(__name__)


def crop_command(options: argparse.Namespace) -> int:
    """Cut out the knees: PNG files, ``manifest.csv``, contact sheets, and ``rejected.csv`` for images without a crop."""
    folder: Path = options.folder
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the crops with --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give a new folder with --out")
    grade_set = load_grade_set(options.grade_set)
    table = manifest_from_folder(
        folder, options.layout, pattern=options.pattern, grade_count=grade_set.count, grade_names=grade_set.names
    )
    notes = [*table.attrs["notes"], *claim_folder(out)]
    found = crop_images(folder.resolve(), out, table, size_mm=options.size_mm)
    for note in [*notes, *found.notes]:
        log.info(note)
    if found.rejected:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows(map(spreadsheet_text, row) for row in [("image", "reason"), *found.rejected])
        write_text(out / "rejected.csv", stream.getvalue())
    if found.table.empty:
        raise Faults(
            shortened([f"{image}: {reason}" for image, reason in found.rejected]),
            summary=f"no knee found in {counted(len(table), 'image')} of {folder}:",
        )
    write_manifest(out / "manifest.csv", found.table)
    knees = found.table.groupby("source").size()
    log.info(
        f"{counted(len(found.table), 'knee')} from {counted(len(knees), 'image')}, {int((knees == 2).sum())} of them with "
        f"two; {counted(len(found.rejected), 'image')} without a crop"
        + (f" (reasons in {out / 'rejected.csv'})" if found.rejected else "")
    )
    log.info(f"please check the {counted(len(found.pages), 'contact sheet')}: {found.pages[0]}")
    manifest = typed(out / "manifest.csv")
    log.info(f"wrote {out / 'manifest.csv'}; next: dcmt split {manifest} --out data_splits/NAME.csv")
    return 0
