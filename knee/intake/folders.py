"""Folders of a known layout, read into the table of a manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from knee.errors import Faults, UserError, counted
from knee.images.dicom import Subject
from knee.intake.patients import Placed, placed, tell_subjects
from knee.intake.scan import IMAGE_SUFFIXES, image_files, passed_note, scan, stem
from knee.intake.sheet import Sheet
from knee.intake.sheet_join import grades_of, match_images, subjects_of_images
from knee.io.files import relative_name
from knee.io.tables import shortened

__all__ = ["CHEN_AGAIN", "IMAGE_SUFFIXES", "image_files", "manifest_from_folder"]

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_CHEN = re.compile(r"(train|val|test)/([0-9])/([0-9]+)([LR])\.png")
CHEN_AGAIN = "auto_test/"
"""The published archive holds the knees of its test patients once more, cropped by a detector: no further images to grade."""
_UNGRADED = ("ungraded", "unlabeled")
_MOST_NAMED = 5


def manifest_from_folder(
    folder: str | Path,
    layout: str = "auto",
    *,
    relative_to: str | Path | None = None,
    pattern: str | None = None,
    grade_count: int = 10,
    grade_names: Sequence[str] = (),
    sheet: Sheet | None = None,
) -> pd.DataFrame:
    """The manifest table of a folder of images.

    Layouts: ``chen``, ``SPLIT/GRADE/PATIENT+SIDE.png`` as in the published radiographs (doi:10.17632/56rmx5bjcr.1), whose
    ``auto_test`` is left out; ``tree``, ``SPLIT/GRADE/…``, ``GRADE/…`` or just images, where GRADE is a number below
    ``grade_count``, one of ``grade_names``, or 'ungraded' / 'unlabeled' (files outside any grade folder are ungraded, too);
    ``auto``, the first that fits. A folder ``masks`` holds masks under the images' own paths, or
    under those below the images' top folder where no two images have the same.

    Patient and side are told by ``knee.intake.patients.tell_subjects``; ``pattern``, a regular expression with a group
    ``patient`` and perhaps ``side``, is searched in the path below the folder instead ('folder' and 'file' stand for the
    image's folder and its name). ``attrs["notes"]`` of the table says in sentences what was taken for what.

    Args:
        relative_to: the folder that the manifest will lie in (default: ``folder``); image paths start there.
        sheet: grades, and perhaps patients and sides, of a spreadsheet (``knee.intake.sheet_join`` tells how it is joined).

    Raises:
        UserError: no folder, no images, a file that does not fit the layout or the pattern, a patient that may be told in
            two ways, links out of the folder, a sheet that fits no image. Faults: all of a sheet's rows that contradict each
            other, an image's name or its folder's grade.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder that holds the images")
    files, passed_over = scan(folder)
    if not files:
        fault = f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)}); give the folder that does"
        raise UserError(". ".join([fault, *passed_note(passed_over)]))
    once = [file for file in files if not file.startswith(CHEN_AGAIN)] or files
    odd = [file for file in once if not _CHEN.fullmatch(file)]
    if layout == "chen" and odd:
        raise UserError(
            f"{folder}: {len(odd)} files are not named SPLIT/GRADE/PATIENT+SIDE.png, '{odd[0]}' first; "
            "use --layout tree"
        )
    if layout not in ("auto", "chen", "tree"):
        raise UserError(f"layout '{layout}' is unknown; write auto, chen or tree")
    if not odd and layout != "tree" and pattern is None and sheet is None:
        rows = [_chen_row(file) for file in once]
        notes = [f"{folder}: layout chen; the patient is the number in the file's name, the side the letter after it."]
        if again := len(files) - len(once):
            notes.append(
                f"{counted(again, 'image')} in '{CHEN_AGAIN}' left out: test patients' knees once more, cropped by a detector "
                "(--layout tree takes them, ungraded)."
            )
    else:
        rows, notes = _tree_rows(
            folder, files, pattern, _Grades(grade_count, [name.lower() for name in grade_names]), sheet
        )
    table = pd.DataFrame(rows, columns=["image", "patient", "side", "grade", "mask", "split"])
    if not (table["split"] != "").any():
        table = table.drop(columns="split")
    start = Path(relative_to or folder).resolve()
    for column in ("image", "mask"):
        table[column] = [relative_name(folder.resolve() / name, start) if name else "" for name in table[column]]
    _refuse_outer_spaces(table["image"].tolist())
    table["grade"] = table["grade"].astype("Int64")
    table.attrs["notes"] = [*notes, *passed_note(passed_over)]
    return table


def _refuse_outer_spaces(images: Sequence[str]) -> None:
    """Raises Faults for paths that a table cannot hold: spaces around a field are not part of it."""
    faults = [f"'{image}'" for image in images if image != image.strip()]
    if faults:
        raise Faults(
            shortened(faults),
            summary=f"{counted(len(faults), 'path')} with a space at the outer end, which no table keeps; rename:",
        )


def _chen_row(file: str) -> dict[str, object]:
    match = _CHEN.fullmatch(file)
    assert match is not None
    split, grade, patient, side = match.groups()
    return {"image": file, "patient": patient, "side": side, "grade": int(grade), "mask": "", "split": split}


class _Grades(NamedTuple):
    """What folders of grades are called."""

    number: int
    names: list[str]

    def names_grade(self, part: str) -> bool:
        """Whether ``part`` is the name of a folder of a grade, or of ungraded images."""
        return part.lower() in (*self.names, *_UNGRADED) or re.fullmatch("[0-9]{1,2}", part) is not None


def _tree_rows(
    folder: Path, files: list[str], pattern: str | None, grades: _Grades, sheet: Sheet | None
) -> tuple[list[dict[str, object]], list[str]]:
    drawn = [name for name in files if name.startswith("masks/")]
    images = [name for name in files if not name.startswith("masks/")]
    if not images:
        raise UserError(f"{folder}: holds masks alone; the images lie beside the folder 'masks'")
    placement = [_split_and_grade(file, grades) for file in images]
    places = _places(images, grades)
    listed_rows = match_images(sheet, images) if sheet else pd.DataFrame()
    listed = subjects_of_images(sheet, listed_rows) if sheet else {}
    subjects, told = tell_subjects(folder, places, pattern, listed)
    if any(subject.patient for subject in listed.values()):
        told.append("The patient of an image that the sheet names with one is the sheet's.")
    masks = _masks_of(images, drawn)
    told += _lone_masks(sorted(set(drawn) - set(masks)))
    rows: list[dict[str, object]] = []
    for file, (split, grade), (patient, side), mask in zip(images, placement, subjects, masks, strict=True):
        rows.append({"image": file, "patient": patient, "side": side, "grade": grade, "mask": mask, "split": split})
    if sheet:
        joined = _take_grades(sheet, rows, subjects, listed_rows)
        return rows, [*_notes(folder, rows), *told, *joined, *_lone_note(rows, pattern)]
    return rows, [*_notes(folder, rows), *told, *_lone_note(rows, pattern), *_unknown_folders(rows, grades)]


def _masks_of(images: list[str], drawn: list[str]) -> list[str]:
    """The mask of each image, '' where there is none."""
    masks = {stem(name): name for name in drawn}
    paths = [stem(file) for file in images]
    below = [path.partition("/")[2] for path in paths]
    claims = Counter([*paths, *below])
    return [
        masks.get(f"masks/{path}") or (masks.get(f"masks/{lower}", "") if claims[lower] == 1 else "")
        for path, lower in zip(paths, below, strict=True)
    ]


def _lone_masks(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{counted(len(names), 'file')} in masks {'fits' if len(names) == 1 else 'fit'} no image, '{names[0]}' first; a mask "
        "has the path of its image, masks/0/7_L.png for 0/7_L.png."
    ]


def _take_grades(
    sheet: Sheet,
    rows: list[dict[str, object]],
    subjects: Sequence[Subject],
    listed_rows: pd.DataFrame,
) -> list[str]:
    """Write the sheet's grades into the rows; sentences that say what was joined."""
    entries, notes = grades_of(sheet, [str(row["image"]) for row in rows], subjects, listed_rows)
    faults = []
    for row, entry in zip(rows, entries, strict=True):
        if entry is None:
            continue
        if row["grade"] not in (None, entry.grade):
            faults.append(
                f"{row['image']}: lies in the folder of grade {row['grade']}, row {entry.row} of the sheet says {entry.grade}"
            )
        row["grade"] = entry.grade
    if faults:
        raise Faults(
            shortened(faults),
            summary=f"{sheet.path}: {counted(len(faults), 'image')} with another grade than the folder's; mend one:",
        )
    return notes


def _split_and_grade(file: str, grades: _Grades) -> tuple[str, int | None]:
    split, folders = _below_split(file)
    for part in folders[:1]:
        if part.lower() in grades.names:
            return split, grades.names.index(part.lower())
        if re.fullmatch("[0-9]{1,2}", part):
            if int(part) >= grades.number:
                raise UserError(
                    f"{file}: folder '{part}' is not a grade from 0 to {grades.number - 1}, nor 'ungraded'; rename it"
                )
            return split, int(part)
    return split, None


def _below_split(file: str) -> tuple[str, list[str]]:
    """The split that a file lies in ('' for none), and its folders below that."""
    folders = file.split("/")[:-1]
    split = _SPLIT_NAMES.get(folders[0].lower(), "") if folders else ""
    return split, folders[1:] if split else folders


def _places(images: list[str], grades: _Grades) -> list[Placed]:
    """Each image with its folders below split and grade; what lies beside such folders counts as one of them."""
    parted = [_below_split(file) for file in images]
    any_split = any(split for split, _ in parted)
    any_grade = any(folders and grades.names_grade(folders[0]) for _, folders in parted)
    places = []
    for file, (split, folders) in zip(images, parted, strict=True):
        below = list(folders)
        if any_split and not split and below and not grades.names_grade(below[0]):
            below.pop(0)
        if below and (any_grade or grades.names_grade(below[0])):
            below.pop(0)
        places.append(placed(file, below))
    return places


def _notes(folder: Path, rows: list[dict[str, object]]) -> list[str]:
    patients = len({row["patient"] for row in rows})
    ungraded = sum(row["grade"] is None for row in rows)
    return [f"{folder}: layout tree; {len(rows)} images, {ungraded} of them ungraded, {patients} patients."]


def _lone_note(rows: list[dict[str, object]], pattern: str | None) -> list[str]:
    if pattern is not None or not len({row["patient"] for row in rows}) == len(rows) > 1:
        return []
    return [
        "So every image is a patient of its own. If several images show one person, give --pattern, "
        "or a patient may end up in both training and test."
    ]


def _unknown_folders(rows: list[dict[str, object]], grades: _Grades) -> list[str]:
    """Folders where that of a grade would be, and that are none; not where they are the patients' own."""
    found: dict[str, set[object]] = {}
    for row in rows:
        _, folders = _below_split(str(row["image"]))
        if folders and not grades.names_grade(folders[0]):
            found.setdefault(folders[0], set()).add(row["patient"])
    ungraded = all(row["grade"] is None for row in rows)
    if ungraded and all(len(patients) == 1 for patients in found.values()):
        return []
    if not found:
        return []
    names = [f"'{name}'" for name in sorted(found)[:_MOST_NAMED]]
    names += [f"{len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    return [
        f"No grade is read from {'the folder' if len(found) == 1 else 'the folders'} {', '.join(names)}; a folder of a grade "
        f"is named by its number, 0 to {grades.number - 1}, or its name in the grade set, one of ungraded images 'ungraded'."
    ]
