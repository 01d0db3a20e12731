"""Build the table of a manifest from a folder of images with a known layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from knee.errors import Faults, UserError, counted
from knee.images.slices import SliceChoice
from knee.intake.grade_folders import (
    GradeFolders,
    Scale,
    find_grade_folders,
    grades_by_pattern,
    note_on_unread_folders,
)
from knee.intake.naming import placed
from knee.intake.patients import tell_subjects
from knee.intake.scan import IMAGE_SUFFIXES, Scan, scan, stem
from knee.intake.sheet import Sheet
from knee.intake.sheet_join import join_sheet, join_texts, match_images, subjects_of_images
from knee.intake.visits import visit_in_path
from knee.intake.volumes import expand, refuse_volumes, slice_mask
from knee.io.files import relative_name

_CHEN = re.compile(r"(train|val|test)/([0-9])/([0-9]+)([LR])\.png")
CHEN_AGAIN = "auto_test/"
"""In the published archive: copies of the test patients' knees, cropped by a detector. Not additional images to grade."""
LAYOUTS = ("auto", "chen", "tree", "plain")


def manifest_from_folder(
    folder: str | Path,
    layout: str = "auto",
    *,
    relative_to: str | Path | None = None,
    pattern: str | None = None,
    grade_count: int = 10,
    grade_names: Sequence[str] = (),
    sheet: Sheet | None = None,
    slices: SliceChoice | None = None,
) -> pd.DataFrame:
    """The manifest table of a folder of images.

    Layouts:

    - ``chen``: ``SPLIT/GRADE/PATIENT+SIDE.png``, as in the published radiographs (doi:10.17632/56rmx5bjcr.1), whose
      folder ``auto_test`` is left out.
    - ``tree``: ``SPLIT/GRADE/…``, ``GRADE/…`` or just images. GRADE is a number below ``grade_count``, one of
      ``grade_names``, a spelling such as KL2, grade_2 or 2Mild, or 'ungraded' / 'unlabeled'. Files outside grade folders
      are ungraded.
    - ``plain``: as ``tree``, but no folder is a grade.
    - ``auto``: the first layout that fits. Numbered folders that may not be grades are an error.

    A folder ``masks`` contains masks under the same paths as the images. The top folder of the path may be omitted if the
    rest is unique.

    ``knee.intake.patients.tell_subjects`` infers patient and side. Alternatively, ``pattern`` is searched in the path below
    the folder: a regular expression with a group ``patient`` and optionally ``side`` and ``grade``, or 'folder' or 'file' for
    the image's folder or file name. The slices of a volume have its patient, side and grade, and a name of the volume in the
    column ``series`` (``knee.intake.volumes.expand``). ``attrs["notes"]`` of the table describes in sentences how the folder
    was read.

    Args:
        relative_to: the folder that the manifest will be written to (default: ``folder``); image paths are relative to it.
        sheet: grades, and optionally patients, sides and splits, from a spreadsheet (``knee.intake.sheet_join``).
        slices: which slices of volumes become images; needed if there are NIfTI volumes.

    Raises:
        UserError: no folder, no images, a file that does not fit the layout or the pattern, an ambiguous grade or patient,
            volumes without ``slices``, links out of the folder, a sheet that fits no image. Faults: all rows of a sheet that
            contradict each other, an image's name or its folder's grade.
    """
    folder = Path(folder)
    found = _scanned(folder, layout)
    files = found.images
    once = [file for file in files if not file.startswith(CHEN_AGAIN)] or files
    odd = next((file for file in once if not _CHEN.fullmatch(file)), None)
    if layout == "chen" and odd:
        raise UserError(f"{folder}: '{odd}' is not named SPLIT/GRADE/PATIENT+SIDE.png; use --layout tree")
    if odd is None and layout in ("auto", "chen") and pattern is None and sheet is None:
        rows, notes = _chen_rows(folder, once, len(files) - len(once))
    else:
        scale = Scale(grade_count, tuple(name.lower() for name in grade_names))
        rows, notes = _tree_rows(folder, found, layout, pattern, scale, sheet)
    rows, sliced = _slices_of(folder, rows, found, slices)
    table = _table(rows, folder.resolve(), Path(relative_to or folder).resolve())
    table.attrs["notes"] = [*notes, *sliced, *found.notes()]
    return table


def _table(rows: list[dict[str, object]], folder: Path, start: Path) -> pd.DataFrame:
    """The rows as a manifest's table, with paths relative to ``start``."""
    columns = ["image", "patient", "side", "grade", "mask", "split", "visit", "series"]
    further = [name for name in rows[0] if name not in columns]
    table = pd.DataFrame(rows, columns=[*columns, *further])
    for optional in ("split", "visit", "series"):
        if not (table[optional] != "").any():
            table = table.drop(columns=optional)
    for column in ("image", "mask"):
        table[column] = [relative_name(folder / name, start) if name else "" for name in table[column]]
    _refuse_outer_spaces(table["image"].tolist())
    table["grade"] = table["grade"].astype("Int64")
    return table


def _slices_of(
    folder: Path, rows: list[dict[str, object]], found: Scan, slices: SliceChoice | None
) -> tuple[list[dict[str, object]], list[str]]:
    """The rows with volumes replaced by rows of their slices, and a sentence that says how many there are.

    Raises UserError as ``knee.intake.volumes.expand``; Faults: a series of two patients or sides.
    """
    by_file = {str(row["image"]): row for row in rows}
    if slices is None:
        refuse_volumes(folder, list(by_file), found.headers)
    images = expand(folder, list(by_file), found.headers, slices)
    sliced: list[dict[str, object]] = []
    faults: dict[str, str] = {}
    owners: dict[str, tuple[str, object]] = {}
    for one in images:
        row, side = by_file[one.file], by_file[one.file]["side"]
        mask = slice_mask(folder, str(row["mask"]), one)
        sliced.append({**row, "image": one.image, "mask": mask, "series": one.series})
        owner = f"patient '{row['patient']}'{side and f', side {side}'}"
        first, known = owners.setdefault(one.series, (one.image, owner))
        if one.series and known != owner:
            faults[one.series] = f"{first} and {one.image}: slices of one series, but of {known} and {owner}"
    if faults:
        raise Faults(
            list(faults.values()),
            summary=f"{folder}: {len(faults)} series of two knees; give --pattern, or correct the sheet:",
        )
    names = {one.series for one in images if one.series}
    inside = sum(bool(one.series) for one in images)
    chosen = f" (--slices {slices})" if slices else ""
    return sliced, [f"{inside} slices of {len(names)} volumes{chosen}; column series."] if names else []


def _scanned(folder: Path, layout: str) -> Scan:
    if layout not in LAYOUTS:
        raise UserError(f"layout '{layout}' is unknown; write {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder that contains the images")
    found = scan(folder)
    if not found.images:
        error = f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)}); give the folder that does"
        raise UserError(". ".join([error, *found.notes()]))
    return found


def _refuse_outer_spaces(images: Sequence[str]) -> None:
    """Raises Faults for paths that begin or end with a space, because reading a CSV table strips outer spaces."""
    faults = [f"'{image}'" for image in images if image != image.strip()]
    if faults:
        raise Faults(
            faults,
            summary=f"{counted(len(faults), 'path')} beginning or ending with a space, which a table does not keep; rename:",
        )


def _chen_rows(folder: Path, files: Sequence[str], again: int) -> tuple[list[dict[str, object]], list[str]]:
    matches = [match for match in map(_CHEN.fullmatch, files) if match]
    rows: list[dict[str, object]] = [
        {"image": file[0], "patient": file[3], "side": file[4], "grade": int(file[2]), "mask": "", "split": file[1]}
        for file in matches
    ]
    notes = [f"{folder}: layout chen; the patient is the number in the file's name, the side the letter after it."]
    if again:
        notes.append(
            f"{counted(again, 'image')} in '{CHEN_AGAIN}' left out: copies of the test patients' knees, cropped by a detector "
            "(--layout tree includes them, ungraded)."
        )
    return [{**row, "visit": ""} for row in rows], notes


def _tree_rows(
    folder: Path, found: Scan, layout: str, pattern: str | None, scale: Scale, sheet: Sheet | None
) -> tuple[list[dict[str, object]], list[str]]:
    drawn = [name for name in found.images if name.startswith("masks/")]
    images = [name for name in found.images if not name.startswith("masks/")]
    if not images:
        raise UserError(f"{folder}: contains only masks; put the images next to the folder 'masks'")
    by_pattern = grades_by_pattern(images, pattern, scale)
    folders = find_grade_folders(folder, images, scale, "plain" if by_pattern else layout)
    places = [placed(file, below) for file, below in zip(images, folders.below(images), strict=True)]
    listed_rows = match_images(sheet, images) if sheet else pd.DataFrame()
    listed = subjects_of_images(sheet, listed_rows) if sheet else {}
    headers = [found.headers[image] for image in images]
    subjects, notes = tell_subjects(folder, places, headers, pattern, listed)
    if any(subject.patient for subject in listed.values()):
        notes.append("If the sheet lists an image's patient, that patient is used.")
    masks = _masks_of(images, drawn)
    notes += _unmatched_masks(sorted(set(drawn) - set(masks)))
    table = pd.DataFrame({"image": images, "patient": [one.patient for one in subjects]}, dtype=object)
    table["side"] = [one.side for one in subjects]
    table["grade"] = pd.Series(by_pattern or [_folder_grade(folders, file) for file in images], dtype=object)
    table["mask"] = masks
    table["split"] = [folders.split_and_rest(file)[0] for file in images]
    table["label"] = [visit_in_path(file) for file in images]
    table["date"] = [header.date if header else "" for header in headers]
    joined = _take_from_sheet(sheet, table, listed_rows) if sheet else []
    table["visit"] = _visits(table)
    rows = table.drop(columns=["label", "date"]).astype(object).to_dict("records")
    graded = list(zip(images, table["patient"], table["grade"], strict=True))
    unread = [] if sheet or by_pattern else note_on_unread_folders(graded, folders, scale)
    single = _single_image_note(table, pattern)
    return [{str(key): value for key, value in row.items()} for row in rows], [
        _note(folder, table), *notes, *joined, *single, *unread,
    ]  # fmt: skip


def _folder_grade(folders: GradeFolders, file: str) -> int | None:
    _, rest = folders.split_and_rest(file)
    return folders.grades.get(rest[0]) if rest else None


def _visits(table: pd.DataFrame) -> pd.Series[str]:
    """The visit of each image if a person has several: from the path, else the study date; else ''."""
    visits = table["label"].where(table["label"] != "", table["date"])
    if table.assign(visit=visits)[visits != ""].groupby("patient")["visit"].nunique().max() > 1:
        return visits
    return visits.where(visits == "", "")


def _masks_of(images: list[str], drawn: list[str]) -> list[str]:
    """The mask of each image, '' if there is none."""
    masks = {stem(name): name for name in drawn}
    paths = [stem(file) for file in images]
    below = [path.partition("/")[2] for path in paths]
    claims = Counter([*paths, *below])
    return [
        masks.get(f"masks/{path}") or (masks.get(f"masks/{lower}", "") if claims[lower] == 1 else "")
        for path, lower in zip(paths, below, strict=True)
    ]


def _unmatched_masks(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{counted(len(names), 'file')} in masks {'fits' if len(names) == 1 else 'fit'} no image ('{names[0]}' first); a "
        "mask must have the path of its image: masks/0/7_L.png for 0/7_L.png."
    ]


def _take_from_sheet(sheet: Sheet, table: pd.DataFrame, listed_rows: pd.DataFrame) -> list[str]:
    """Write the sheet's grades and splits into the table; returns sentences describing the result."""
    entries, splits, notes = join_sheet(sheet, table, listed_rows)
    texts = join_texts(sheet, table, listed_rows) if sheet.texts else []
    faults = []
    for image, grade, split, entry, given in zip(
        table["image"], table["grade"], table["split"], entries, splits, strict=True
    ):
        if entry is not None and grade not in (None, entry.grade):
            faults.append(
                f"{image}: is in the folder of grade {grade}, but row {entry.row} of the sheet has {entry.grade}"
            )
        if given and split not in ("", given):
            faults.append(f"{image}: is in the folder of split {split}, but the sheet has {given}")
    if faults:
        raise Faults(
            faults,
            summary=f"{sheet.path}: {counted(len(faults), 'image')} with another grade or split than the folder's; fix one:",
        )
    table["grade"] = pd.Series(
        [grade if entry is None else entry.grade for grade, entry in zip(table["grade"], entries, strict=True)],
        dtype=object,
    )
    table["split"] = [given or split for given, split in zip(splits, table["split"], strict=True)]
    for name, values in zip(sheet.texts, zip(*texts, strict=True), strict=True):
        table[name] = values
    return notes


def _note(folder: Path, table: pd.DataFrame) -> str:
    ungraded = int(table["grade"].isna().sum())
    return f"{folder}: layout tree; {len(table)} images, {ungraded} of them ungraded, {table['patient'].nunique()} patients."


def _single_image_note(table: pd.DataFrame, pattern: str | None) -> list[str]:
    if pattern is not None or not table["patient"].nunique() == len(table) > 1:
        return []
    return [
        "So every image counts as a separate patient. If several images show the same person, give --pattern; otherwise a "
        "patient may end up in both training and test."
    ]
