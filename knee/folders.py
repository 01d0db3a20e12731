"""Folders of a known layout, read into the table of a manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from knee.errors import Faults, UserError
from knee.tables import shortened

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".npy", ".dcm", ".nii", ".nii.gz")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_CHEN = re.compile(r"(train|val|test)/([0-9])/([0-9]+)([LR])\.png")
_SIDE_AT_END = re.compile(
    r"(?P<patient>.*[0-9])(?P<side>[LR])|(?P<stem>.+)[-_ ](?P<word>[LRlr]|left|right|LEFT|RIGHT|Left|Right)"
)


def manifest_from_folder(
    folder: str | Path,
    layout: str = "auto",
    *,
    relative_to: str | Path | None = None,
    pattern: str | None = None,
    grade_count: int = 10,
    grade_names: Sequence[str] = (),
) -> pd.DataFrame:
    """The manifest table of a folder of images.

    Layouts: ``chen``, ``SPLIT/GRADE/PATIENT+SIDE.png`` as in the published radiographs (doi:10.17632/56rmx5bjcr.1);
    ``tree``, ``SPLIT/GRADE/…``, ``GRADE/…`` or just images, where GRADE is a number below ``grade_count``, one of
    ``grade_names``, or 'ungraded' / 'unlabeled' (files outside any grade folder are ungraded, too); ``auto``, the first
    that fits. A folder ``masks`` holds masks under the images' own names.

    The patient is the file's name without a side at its end; ``pattern``, a regular expression with a group ``patient``
    and perhaps ``side``, is searched in the path below the folder instead. ``attrs["notes"]`` of the table says in
    sentences what was taken for what.

    Args:
        relative_to: the folder that the manifest will lie in (default: ``folder``); image paths start there.

    Raises:
        UserError: no folder, no images, a file that does not fit the layout or the pattern, links out of the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder that holds the images")
    files = image_files(folder)
    if not files:
        raise UserError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)}); give the folder that does")
    odd = [file for file in files if not _CHEN.fullmatch(file)]
    if layout == "chen" and odd:
        raise UserError(
            f"{folder}: {len(odd)} files are not named SPLIT/GRADE/PATIENT+SIDE.png, '{odd[0]}' first; "
            "use --layout tree"
        )
    if layout not in ("auto", "chen", "tree"):
        raise UserError(f"layout '{layout}' is unknown; write auto, chen or tree")
    if not odd and layout != "tree" and pattern is None:
        rows = [_chen_row(file) for file in files]
        notes = [f"{folder}: layout chen; the patient is the number in the file's name, the side the letter after it."]
    else:
        rows, notes = _tree_rows(folder, files, pattern, grade_count, [name.lower() for name in grade_names])
    table = pd.DataFrame(rows, columns=["image", "patient", "side", "grade", "mask", "split"])
    if not (table["split"] != "").any():
        table = table.drop(columns="split")
    start = Path(relative_to or folder).resolve()
    for column in ("image", "mask"):
        table[column] = [_relative(folder.resolve() / name, start) if name else "" for name in table[column]]
    table["grade"] = table["grade"].astype("Int64")
    table.attrs["notes"] = notes
    return table


def image_files(folder: str | Path) -> list[str]:
    """Paths of the images below ``folder``, sorted, with '/' between their parts; hidden ones are left out.

    A scan reads what lies in the folder and nothing else: a link that leads out of it may bring in other people's files
    under this folder's name, so it is refused. A link to an image that is found by its own name is left out, since the
    same picture under two names may end up in both training and test.

    Raises:
        Faults: links that lead out of the folder, to nowhere or in a circle.
    """
    folder = Path(folder)
    found: dict[str, Path] = {}
    links: dict[str, Path] = {}
    faults = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        here = Path(place)
        for name in [*names, *(name for name in inner if (here / name).is_symlink())]:
            path = here / name
            shown = path.relative_to(folder).as_posix()
            if name.startswith(".") or (name in names and not name.lower().endswith(IMAGE_SUFFIXES)):
                continue
            if not path.is_symlink():
                if path.is_file():
                    found[shown] = path.resolve()
            elif reason := _refused_link(path, folder):
                faults.append(f"{shown}: {reason}")
            elif path.is_file():
                links[shown] = path.resolve()
    if faults:
        raise Faults(
            shortened(sorted(faults)),
            summary=f"{folder}: {len(faults)} links lead out of the folder; put the files themselves there, give the folder "
            "that holds them, or write the manifest by hand (it may name any path):",
        )
    known = set(found.values())
    return sorted([*found, *(shown for shown, target in links.items() if target not in known)])


def _refused_link(path: Path, folder: Path) -> str | None:
    """Why a link is not followed; None where it stays in the folder."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "is a link to nowhere"
    return None if target.is_relative_to(folder.resolve()) else f"is a link to {target}"


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _chen_row(file: str) -> dict[str, object]:
    match = _CHEN.fullmatch(file)
    assert match is not None
    split, grade, patient, side = match.groups()
    return {"image": file, "patient": patient, "side": side, "grade": int(grade), "mask": "", "split": split}


def _tree_rows(
    folder: Path, files: list[str], pattern: str | None, grade_count: int, grade_names: list[str]
) -> tuple[list[dict[str, object]], list[str]]:
    masks = {_stem(name): name for name in files if name.startswith("masks/")}
    images = [name for name in files if not name.startswith("masks/")]
    if not images:
        raise UserError(f"{folder}: holds masks alone; the images lie beside the folder 'masks'")
    rows: list[dict[str, object]] = []
    for file in images:
        split, grade = _split_and_grade(file, grade_count, grade_names)
        patient, side = _patient_and_side(file, pattern)
        mask = masks.get(f"masks/{_stem(file)}", "")
        rows.append({"image": file, "patient": patient, "side": side, "grade": grade, "mask": mask, "split": split})
    return rows, _notes(folder, rows, pattern)


def _split_and_grade(file: str, grade_count: int, grade_names: list[str]) -> tuple[str, int | None]:
    folders = file.lower().split("/")[:-1]
    split = _SPLIT_NAMES.get(folders[0], "") if folders else ""
    if split:
        folders = folders[1:]
    for part in folders[:1]:
        if part in grade_names:
            return split, grade_names.index(part)
        if re.fullmatch("[0-9]{1,2}", part):
            if int(part) >= grade_count:
                raise UserError(
                    f"{file}: folder '{part}' is not a grade from 0 to {grade_count - 1}, nor 'ungraded'; rename it"
                )
            return split, int(part)
    return split, None


def _patient_and_side(file: str, pattern: str | None) -> tuple[str, str]:
    if pattern is not None:
        try:
            match = re.search(pattern, file)
        except re.error as error:
            raise UserError(
                f"pattern '{pattern}' is not a regular expression ({error}); e.g. (?P<patient>[0-9]+)_"
            ) from error
        groups = match.groupdict() if match else {}
        if not groups.get("patient"):
            raise UserError(
                f"{file}: pattern '{pattern}' finds no group 'patient' in it; write it like (?P<patient>[0-9]+)_"
            )
        return str(groups["patient"]), (groups.get("side") or "")[:1].upper()
    stem = _stem(file).rsplit("/", 1)[-1]
    match = _SIDE_AT_END.fullmatch(stem)
    if not match:
        return stem, ""
    return match["patient"] or match["stem"], (match["side"] or match["word"])[0].upper()


def side_in_name(name: str) -> str:
    """The side that a file's name ends with: "L", "R", or "" where it says none.

    >>> side_in_name("007_left.png"), side_in_name("knee.dcm")
    ('L', '')
    """
    return _patient_and_side(name, None)[1]


def _stem(file: str) -> str:
    """The path without its suffix (``.nii.gz`` is one)."""
    return file[: -len(".nii.gz")] if file.lower().endswith(".nii.gz") else file.rpartition(".")[0]


def _notes(folder: Path, rows: list[dict[str, object]], pattern: str | None) -> list[str]:
    patients = len({row["patient"] for row in rows})
    ungraded = sum(row["grade"] is None for row in rows)
    notes = [f"{folder}: layout tree; {len(rows)} images, {ungraded} of them ungraded, {patients} patients."]
    if pattern is not None:
        return [*notes, f"The patient is what '{pattern}' finds."]
    notes.append("The patient is the file's name without a side (L, R, left, right) at its end.")
    if patients == len(rows) > 1:
        notes.append(
            "So every image is a patient of its own. If several images show one person, give --pattern, "
            "or a patient may end up in both training and test."
        )
    return notes
