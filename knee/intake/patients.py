"""Whose knee an image shows, and which: told by its DICOM header, its name, or the folder it lies in.

A wrong guess puts one person into both training and test. So a layout that can be read in two ways is refused, and the
person is asked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from knee.errors import Faults, UserError, counted, quoted
from knee.images.dicom import Subject, read_subject
from knee.intake.scan import stem
from knee.io.names import composed
from knee.io.pool import map_in_order
from knee.io.tables import shortened

FOLDER, FILE = "folder", "file"
"""What ``--pattern`` may be instead of a regular expression."""

SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
"""What a side may be called, in lower case."""
_SIDE_AT_END = re.compile(
    r"(?P<patient>.*[0-9])(?P<side>[LR])|(?P<stem>.+)[-_ ](?P<word>[LRlr]|left|right|LEFT|RIGHT|Left|Right)"
)
_SIDE_INSIDE = re.compile(r"(?:(?:^|[-_ ])(?:[LRlr]|left|right|LEFT|RIGHT|Left|Right)|[0-9][LR])[-_ ]")
_NOBODY = re.compile(
    r"(?:(?:(?:slice|slc|frame)[-_ ]?[0-9]+|left|right|l|r|knee|image|img|scan|xray|x-ray|ap|pa|lat|lateral)(?:[-_ ]+|$))+",
    re.IGNORECASE,
)
_LIKE_MASKS = re.compile(r"masks?|labels?|seg.*", re.IGNORECASE)
_WAY_OUT = (
    "write --pattern folder where each folder holds one patient, --pattern file where the file's name (without a side at its "
    "end) is the patient's wherever it lies, or a regular expression with a group 'patient'"
)


class Placed(NamedTuple):
    """An image and the folders below the grade's (or the split's, or the top one) that it lies in."""

    file: str
    folders: tuple[str, ...]
    """Without a last one that is named after a side."""


def placed(file: str, folders: Sequence[str]) -> Placed:
    """The image ``file`` in its ``folders``; the last of them may be named left or right.

    >>> placed("2/P7/left/slice01.png", ["P7", "left"])
    Placed(file='2/P7/left/slice01.png', folders=('P7',))
    """
    by_side = bool(folders) and folders[-1].lower() in SIDES
    return Placed(file, tuple(folders[:-1] if by_side else folders))


def side_in_path(file: str) -> str:
    """The side that a file's name, or the folder it lies in, tells: 'L', 'R', or '' where neither does.

    A name that names nobody ('left', 'slice07_L') may have the side anywhere, any other at its end; a folder may be called
    by the side, or, of names that name nobody, end with it.

    >>> side_in_path("007_left.png"), side_in_path("7/right_knee.png"), side_in_path("7/left/2.png"), side_in_path("knee.dcm")
    ('L', 'R', 'L', '')
    """
    *folders, name = stem(file).split("/")
    side, nobody = _name_and_side(name)[1], _NOBODY.fullmatch(name) is not None
    words = {SIDES[word] for word in re.split("[-_ ]+", name.lower()) if word in SIDES}
    if not side and nobody and len(words) == 1:
        side = words.pop()
    if side or not folders:
        return side
    return SIDES.get(folders[-1].lower(), "") or (_name_and_side(folders[-1])[1] if nobody else "")


def tell_subjects(
    folder: Path, images: Sequence[Placed], pattern: str | None, listed: Mapping[str, Subject] | None = None
) -> tuple[list[Subject], list[str]]:
    """Patient and side of every image of a folder, and in sentences how they were told.

    What is ``listed`` of an image (in a spreadsheet; '' for what is not) comes before all else. Where some images have no
    listed patient, the others must be listed as they are told, or one person may go by two names.

    With ``pattern`` (a regular expression with a group ``patient`` and perhaps ``side``, or 'folder' or 'file') the
    patient is what it finds. Otherwise a DICOM file tells its own; the others by their name, or, where the names are
    such as 'left' or 'slice07', by the one folder that they lie in.

    Raises:
        UserError: the pattern does not fit; names that occur in several folders, or that name nobody. Faults: a listed
            side, or patient of some images, that the image's name or header contradicts.
    """
    files = [folder / image.file for image in images]
    headers = list(map_in_order(read_subject, files, description="reading headers"))
    said = [(listed or {}).get(image.file, Subject("", "")) for image in images]
    naming = [header if header and header.patient and pattern is None else None for header in headers]
    known = [None if one.patient else header for header, one in zip(naming, said, strict=True)]
    untold = [image for image, header, one in zip(images, known, said, strict=True) if not (header or one.patient)]
    by, notes = _rule(untold, pattern, alone=len(images) == 1)
    unlisted = next((image.file for image, one in zip(images, said, strict=True) if not one.patient), None)
    found, faults = [], []
    for image, header, named, own, one in zip(images, headers, naming, known, said, strict=True):
        if one.patient and unlisted:
            told = (named or by(image)).patient
            if told != one.patient:
                faults.append(
                    f"{image.file}: is listed as patient '{one.patient}', but by its name or header it is '{told}', as "
                    f"'{unlisted}' is told, which may be the same person's; list the patient of every image"
                )
        patient = one.patient or (own.patient if own else "")
        patient, side = (patient, side_in_path(image.file)) if patient else by(image)
        if header and header.side and not (side and pattern not in (None, FOLDER, FILE)):
            side = header.side
        if one.side and side not in ("", one.side):
            faults.append(f"{image.file}: is listed as side {one.side}, but by its name or header it is {side}")
        found.append(Subject(patient, one.side or side))
    if faults:
        raise Faults(
            shortened(faults),
            summary=f"{folder}: {counted(len(faults), 'fault')}; mend the sheet, or do without its patients (--column "
            "'patient=') or sides (--column 'side='):",
        )
    return found, [*notes, *_header_notes(images, headers, known, found)]


def _rule(
    images: Sequence[Placed], pattern: str | None, *, alone: bool
) -> tuple[Callable[[Placed], Subject], list[str]]:
    """How to tell patient and side of images that do not tell it themselves, and the sentence that says so.

    ``alone``: there is no other image, so that no two can be mixed up.
    """
    by_file_note = "The patient is the file's name without a side (L, R, left, right) at its end."
    by_folder_note = "The patient is the folder that the file lies in, without a side at its end"
    if pattern == FILE:
        return _by_file, [by_file_note, *_inside_note(images)]
    if pattern == FOLDER:
        return _by_folder, [f"{by_folder_note}."]
    if pattern is not None:
        return _by_expression(pattern), [f"The patient is what '{pattern}' finds."]
    if not images:
        return _by_file, []
    _refuse_shared_names(images)
    nobody = [image for image in images if _NOBODY.fullmatch(_name(image))]
    if not nobody or alone:
        return _by_file, [by_file_note, *_inside_note(images)]
    homeless = next((image for image in nobody if not image.folders), None)
    if homeless:
        raise UserError(
            f"{homeless.file}: neither the name '{_name(homeless)}' nor a folder of its own says whose knee it is; put the "
            f"images of each patient into a folder named after the patient (below that of the grade), or {_WAY_OUT}"
        )
    deep = next((image for image in images if len(image.folders) > 1), None)
    if deep:
        raise UserError(f"{deep.file}: which of the folders {quoted(deep.folders)} is the patient? {_WAY_OUT}")
    reason = f", since names such as '{_name(nobody[0])}' name nobody; --pattern tells it otherwise."
    return lambda image: _by_folder(image) if image.folders else _by_file(image), [by_folder_note + reason]


def _inside_note(images: Sequence[Placed]) -> list[str]:
    """Names with a side that is not at their end: the two knees of one person go by two names."""
    names = [_name(image) for image in images]
    inside = [name for name in names if _SIDE_INSIDE.search(name) and not _NOBODY.fullmatch(name)]
    if not inside:
        return []
    return [
        f"{counted(len(inside), 'name')} ('{inside[0]}' first) with a side that is not at the end, where it is not read: the "
        "two knees of one person count as two patients, and may end up in both training and test; give --pattern, such as "
        "'(?P<patient>[0-9]+)_(?P<side>[LR])'."
    ]


def _refuse_shared_names(images: Sequence[Placed]) -> None:
    """Names that occur in several folders are patients at several visits, or pictures of several patients."""
    places: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    for image in images:
        if not _NOBODY.fullmatch(_name(image)):
            places[_by_file(image).patient].setdefault(image.folders, image.file)
    shared = [list(files.values()) for files in places.values() if len(files) > 1]
    if not shared:
        return
    said = f"one name in two folders ({counted(len(shared), 'such name')})"
    for files in shared:
        masks = [file for file in files if _folder_of_masks(file)]
        others = [file for file in files if file not in masks]
        if masks and others:
            raise UserError(
                f"{others[0]} and {masks[0]}: {said}; if '{_folder_of_masks(masks[0])}' holds masks, move them to 'masks', "
                f"each under the path of its image (masks/{others[0]}), or elsewhere and name them in the manifest's column "
                f"'mask'; if it holds images, {_WAY_OUT}"
            )
    raise UserError(
        f"{shared[0][0]} and {shared[0][1]}: {said}: one patient or two? {_WAY_OUT}; a folder that is a grade is named by "
        "its number"
    )


def _folder_of_masks(file: str) -> str:
    """The path of the folder above ``file`` that is called as folders of masks are; '' where none is."""
    folders = file.split("/")[:-1]
    return next(("/".join(folders[: n + 1]) for n, name in enumerate(folders) if _LIKE_MASKS.fullmatch(name)), "")


def _by_file(image: Placed) -> Subject:
    return Subject(_name_and_side(_name(image))[0], side_in_path(image.file))


def _by_folder(image: Placed) -> Subject:
    if not image.folders:
        raise UserError(f"{image.file}: lies in no folder of a patient (those of splits, grades and sides are none)")
    return Subject(_name_and_side(image.folders[-1])[0], side_in_path(image.file))


def _by_expression(pattern: str) -> Callable[[Placed], Subject]:
    try:
        expression = re.compile(composed(pattern))
    except re.error as error:
        raise UserError(
            f"pattern '{pattern}' is not a regular expression ({error}); e.g. (?P<patient>[0-9]+)_"
        ) from error

    def by(image: Placed) -> Subject:
        match = expression.search(composed(image.file))
        groups = match.groupdict() if match else {}
        if not groups.get("patient"):
            raise UserError(
                f"{image.file}: pattern '{pattern}' finds no group 'patient' in it; write it like (?P<patient>[0-9]+)_"
            )
        return Subject(str(groups["patient"]), (groups.get("side") or "")[:1].upper())

    return by


def _name(image: Placed) -> str:
    return stem(image.file).rsplit("/", 1)[-1]


def _name_and_side(name: str) -> tuple[str, str]:
    name = composed(name)
    match = _SIDE_AT_END.fullmatch(name)
    if not match:
        return name, ""
    return match["patient"] or match["stem"], (match["side"] or match["word"])[0].upper()


def _header_notes(
    images: Sequence[Placed],
    headers: Sequence[Subject | None],
    known: Sequence[Subject | None],
    found: Sequence[Subject],
) -> list[str]:
    """What of DICOM headers was used."""
    notes = []
    counts = Counter(header.patient for header in known if header)
    files = sum(header is not None for header in headers)
    if counts:
        others = len(images) - counts.total()
        notes.append(
            f"The patient of {counts.total()} of {len(images)} images is the PatientID of the DICOM file, which the manifest "
            f"then holds{f'; of the other {others}, it is told as above' if others else ''}."
        )
    if len(counts) == 1 and counts.total() > 1:
        notes.append("All these have one PatientID, so they count as one patient; if it was blanked, give --pattern.")
    if files:
        sides = sum(bool(header and header.side) for header in headers)
        notes.append(f"{sides} of {counted(files, 'DICOM file')} say the side.")
    differing = [
        image.file
        for image, header, subject in zip(images, headers, found, strict=True)
        if header and header.side == subject.side != "" and side_in_path(image.file) not in ("", subject.side)
    ]
    if differing:
        notes.append(
            f"{counted(len(differing), 'file')} ('{differing[0]}' first) tell another side by their names than by the DICOM "
            "header, which is taken."
        )
    return notes
