"""What ``dcmt predict`` grades and the tables that it writes; without torch, as for an exported network."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from knee.errors import UserError, counted
from knee.evaluation.by_knee import by_knee
from knee.grades import GradeSet
from knee.images.slices import SliceChoice, is_file
from knee.intake.scan import IMAGE_SUFFIXES, Scan, printable, scan_images
from knee.intake.volumes import expand
from knee.io.files import moved_into_place
from knee.io.tables import spreadsheet_text

log = logging.getLogger(__name__)


FORMATS = ("csv", "png", "html", "nifti", "dicom")
"""``csv`` is always written, ``png`` are the overlays."""
EXPORTED = ("html", "nifti", "dicom")
"""Those that the exporters of the review write, after all is graded."""
KEPT_PX = 1 << 28
"""How many pixels (bytes) of images are kept until they are exported; the others are read again."""


def chosen_formats(text: str) -> tuple[str, ...]:
    """The formats of ``--format``, each once. Raises UserError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UserError(f"format {', '.join(unknown) or 'none'}; choose from {', '.join(FORMATS)}")
    return names


def root_of(images: Path) -> Path:
    """The folder that the names of the images are relative to."""
    return images if images.is_dir() else images.parent


def write_by_knee(
    path: Path,
    table: pd.DataFrame,
    series: Mapping[Path, str],
    root: Path,
    grade_set: GradeSet,
    *,
    severest: bool = False,
) -> None:
    """Write one row for each volume, if there are any."""
    images = {file.relative_to(root).as_posix(): one for file, one in series.items()}
    knees = by_knee(table, images, grade_set.names, severest=severest, decision=grade_set.decision)
    if len(knees):
        write_table(path, knees)
        which = "most severe quarter" if severest else "mean"
        graded = int(knees["predicted"].notna().sum())
        log.info(f"{graded} of {counted(len(knees), 'volume')} graded by the {which} of their slices: {path}")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file; names and reasons are quoted, so that no spreadsheet program takes them for formulas."""
    texts = {
        name: table[name].map(spreadsheet_text, na_action="ignore")
        for name in ("image", "series", "reason")
        if name in table
    }
    table = table.assign(**texts)
    with moved_into_place(path) as scratch:
        table.to_csv(scratch, index=False)


def find_slices(path: Path, choice: SliceChoice | None) -> dict[Path, str]:
    """The image itself, or all images of a folder, volumes as their chosen slices; each with its series, '' if in none.

    Raises UserError if there are none, links lead out of the folder, or ``choice`` does not apply.
    """
    found = _find_images(path)
    root = root_of(path)
    return {root / one.image: one.series for one in expand(root, found.images, found.headers, choice)}


def _find_images(path: Path) -> Scan:
    if path.is_dir():
        found = scan_images(path)
        if not found.images:
            raise UserError(f"{path} contains no image; supported suffixes are {', '.join(IMAGE_SUFFIXES)}")
        return found
    if (printed := printable(str(path))) != str(path):
        raise UserError(f"{printed} is not valid UTF-8, so it cannot be written to a table; rename the file")
    if not is_file(path):
        raise UserError(f"{path} is neither an image nor a folder")
    return Scan([path.name], {}, {}, Counter())
