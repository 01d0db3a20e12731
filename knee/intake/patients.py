"""Whose knee an image shows, and which: told by its DICOM header, its name, or the folder it lies in.

A wrong guess puts one person into both training and test. So a layout that can be read in two ways is refused, and the
person is asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from knee.errors import Faults, UserError, counted, pasted, quoted
from knee.images.dicom import Subject
from knee.intake.headers import Header
from knee.intake.naming import Placed, by_file, by_folder, last_name, names_nobody, side_in_path, split_side
from knee.intake.numbered import refuse_numbered, suggested_pattern
from knee.intake.studies import header_notes, study_notes, study_patients
from knee.io.names import composed

FOLDER, FILE = "folder", "file"
"""What ``--pattern`` may be instead of a regular expression."""

_SIDE_INSIDE = re.compile(r"(?:(?:^|[-_ ])(?:[LRlr]|left|right|LEFT|RIGHT|Left|Right)|[0-9][LR])[-_ ]")
_LIKE_MASKS = re.compile(r"masks?|labels?|seg.*", re.IGNORECASE)


def tell_subjects(
    folder: Path,
    images: Sequence[Placed],
    headers: Sequence[Header | None],
    pattern: str | None,
    listed: Mapping[str, Subject],
) -> tuple[list[Subject], list[str]]:
    """Patient and side of every image of a folder, and in sentences how they were told.

    What is ``listed`` of an image (in a spreadsheet; '' for what is not) comes before all else. Where some images have no
    listed patient, the others must be listed as they are told, or one person may go by two names.

    With ``pattern`` (a regular expression with a group ``patient`` and perhaps ``side``, or 'folder' or 'file') the
    patient is what it finds. Otherwise a DICOM file tells its own, and files of one study are of one patient; the others by
    their name, or, where the names are such as 'left' or 'slice07', by the one folder that they lie in.

    Raises:
        UserError: the pattern does not fit; names that occur in several folders, that name nobody, or that differ only in a
            number. Faults: a listed side, or patient of some images, that the image's name or header contradicts.
    """
    said = [listed.get(image.file, Subject("", "")) for image in images]
    naming = [_patient_of(header) if header and pattern is None else "" for header in headers]
    unnamed = [not (name or one.patient) for name, one in zip(naming, said, strict=True)]
    studies = study_patients(images, headers, unnamed) if pattern is None else {}
    untold = [image for image, nameless in zip(images, unnamed, strict=True) if nameless and image.file not in studies]
    by, notes = _rule(untold, pattern, alone=len(images) == 1)
    told = []
    for image, header, name in zip(images, headers, naming, strict=True):
        patient = name or studies.get(image.file, "")
        subject = Subject(patient, side_in_path(image.file)) if patient else Subject("", "")
        if header and header.side and (pattern in (None, FOLDER, FILE) or not by(image).side):
            subject = subject._replace(side=header.side)
        told.append(subject)
    found = _with_listed(folder, images, said, told, by)
    named = [name if name and not one.patient else "" for name, one in zip(naming, said, strict=True)]
    return found, [
        *notes,
        *study_notes(studies),
        *header_notes([image.file for image in images], headers, named, found),
    ]


def _with_listed(
    folder: Path,
    images: Sequence[Placed],
    said: Sequence[Subject],
    told: Sequence[Subject],
    by: Callable[[Placed], Subject],
) -> list[Subject]:
    """What a sheet says of each image, else its header, else its name; Faults where they contradict each other."""
    unlisted = next((image.file for image, one in zip(images, said, strict=True) if not one.patient), None)
    found, faults = [], []
    for image, one, header in zip(images, said, told, strict=True):
        # A name is read only where nothing else says the patient: it may not fit the rule.
        named = (
            by(image) if not header.patient and (unlisted or not one.patient) else Subject("", side_in_path(image.file))
        )
        patient, side = header.patient or named.patient, header.side or named.side
        if one.patient and unlisted and patient != one.patient:
            faults.append(
                f"{image.file}: is listed as patient '{one.patient}', but by its name or header it is '{patient}', as "
                f"'{unlisted}' is told, which may be the same person's; list the patient of every image"
            )
        if one.side and side not in ("", one.side):
            faults.append(f"{image.file}: is listed as side {one.side}, but by its name or header it is {side}")
        found.append(Subject(one.patient or patient, one.side or side))
    if faults:
        raise Faults(
            faults,
            summary=f"{folder}: {counted(len(faults), 'fault')}; mend the sheet, or do without its patients (--column "
            "'patient=') or sides (--column 'side='):",
        )
    return found


def _patient_of(header: Header) -> str:
    """The PatientID; without the side at its end where the file says that this is its side."""
    patient, side = split_side(header.patient)
    return patient if side and side == header.side else header.patient


def _rule(
    images: Sequence[Placed], pattern: str | None, *, alone: bool
) -> tuple[Callable[[Placed], Subject], list[str]]:
    """How to tell patient and side of images that do not tell it themselves, and the sentence that says so.

    ``alone``: there is no other image, so that no two can be mixed up.
    """
    by_file_note = "The patient is the file's name without a side (L, R, left, right) at its end."
    by_folder_note = "The patient is the folder that the file lies in, without a side at its end"
    if pattern == FILE:
        return by_file, [by_file_note, *_inside_note(images)]
    if pattern == FOLDER:
        return by_folder, [f"{by_folder_note}."]
    if pattern is not None:
        return _by_expression(pattern), [f"The patient is what '{pattern}' finds."]
    if not images:
        return by_file, []
    _refuse_shared_names(images)
    refuse_numbered(
        {image.file: by_file(image).patient for image in images if not names_nobody(image)},
        [image.file for image in images],
    )
    nobody = [image for image in images if names_nobody(image)]
    if not nobody or alone:
        return by_file, [by_file_note, *_inside_note(images)]
    homeless = next((image for image in nobody if not image.folders), None)
    if homeless:
        raise UserError(
            f"{homeless.file}: neither the name '{last_name(homeless)}' nor a folder of its own says whose knee it is; put the "
            "images of each patient into a folder named after the patient (below that of the grade), or "
            f"{_way_out(images)}"
        )
    deep = next((image for image in images if len(image.folders) > 1), None)
    if deep:
        raise UserError(f"{deep.file}: which of the folders {quoted(deep.folders)} is the patient? {_way_out(images)}")
    reason = f", since names such as '{last_name(nobody[0])}' name nobody; --pattern tells it otherwise."
    return lambda image: by_folder(image) if image.folders else by_file(image), [by_folder_note + reason]


def _way_out(images: Sequence[Placed]) -> str:
    """The options that say who the patient is, those that fit these images."""
    ways = ["--pattern folder where each folder holds one patient"] if all(image.folders for image in images) else []
    ways.append("--pattern file where the file's name (without a side at its end) is the patient's wherever it lies")
    return f"write {', '.join(ways)}, or a regular expression with a group 'patient'"


def _inside_note(images: Sequence[Placed]) -> list[str]:
    """Names with a side that is not at their end: the two knees of one person go by two names."""
    names = [last_name(image) for image in images if not names_nobody(image)]
    inside = [name for name in names if _SIDE_INSIDE.search(name)]
    if not inside:
        return []
    pattern = suggested_pattern([image.file for image in images])
    way_out = f"--pattern {pasted(pattern)}" if pattern else "--pattern with groups 'patient' and 'side'"
    return [
        f"{counted(len(inside), 'name')} ('{inside[0]}' first) with a side that is not at the end, where it is not read: the "
        f"two knees of one person count as two patients, and may end up in both training and test; give {way_out}."
    ]


def _refuse_shared_names(images: Sequence[Placed]) -> None:
    """Names that occur in several folders are patients at several visits, or pictures of several patients."""
    places: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    for image in images:
        if not names_nobody(image):
            places[by_file(image).patient].setdefault(image.folders, image.file)
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
                f"'mask'; if it holds images, {_way_out(images)}"
            )
    raise UserError(
        f"{shared[0][0]} and {shared[0][1]}: {said}: one patient or two? {_way_out(images)}; a folder that is a grade is "
        "named by its number"
    )


def _folder_of_masks(file: str) -> str:
    """The path of the folder above ``file`` that is called as folders of masks are; '' where none is."""
    folders = file.split("/")[:-1]
    return next(("/".join(folders[: n + 1]) for n, name in enumerate(folders) if _LIKE_MASKS.fullmatch(name)), "")


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
