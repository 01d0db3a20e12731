"""Infer the patient and the side of each image from its DICOM header, its name, or its folder.

A wrong guess could put one person into both training and test. So an ambiguous layout is an error, and the user decides.
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
"""Values of ``--pattern`` other than a regular expression."""

_SIDE_INSIDE = re.compile(r"(?:(?:^|[-_ ])(?:[LRlr]|left|right|LEFT|RIGHT|Left|Right)|[0-9][LR])[-_ ]")
_LIKE_MASKS = re.compile(r"masks?|labels?|seg.*", re.IGNORECASE)


def tell_subjects(
    folder: Path,
    images: Sequence[Placed],
    headers: Sequence[Header | None],
    pattern: str | None,
    listed: Mapping[str, Subject],
) -> tuple[list[Subject], list[str]]:
    """Patient and side of every image of a folder, and sentences that say how they were inferred.

    What is ``listed`` for an image in a spreadsheet ('' if not listed) takes precedence. If some images have no listed
    patient, the listed patients of the others must equal the inferred ones, or one person might have two names.

    With ``pattern`` (a regular expression with a group ``patient`` and optionally ``side``, or 'folder' or 'file'), the
    patient is what it matches. Otherwise a DICOM file's patient is its PatientID, and files of one study are of one patient.
    The patient of other files is their name or, if names such as 'left' or 'slice07' occur, their one folder.

    Raises:
        UserError: the pattern does not match; names that occur in several folders, that identify no patient, or that differ
            only in a number. Faults: a listed side or patient that contradicts the image's name or header.
    """
    given = [listed.get(image.file, Subject("", "")) for image in images]
    naming = [_patient_of(header) if header and pattern is None else "" for header in headers]
    unnamed = [not (name or one.patient) for name, one in zip(naming, given, strict=True)]
    studies = study_patients(images, headers, unnamed) if pattern is None else {}
    unknown = [image for image, nameless in zip(images, unnamed, strict=True) if nameless and image.file not in studies]
    by, notes = _rule(unknown, pattern, only=len(images) == 1)
    known = []
    for image, header, name in zip(images, headers, naming, strict=True):
        patient = name or studies.get(image.file, "")
        subject = Subject(patient, side_in_path(image.file)) if patient else Subject("", "")
        if header and header.side and (pattern in (None, FOLDER, FILE) or not by(image).side):
            subject = subject._replace(side=header.side)
        known.append(subject)
    found = _with_listed(folder, images, given, known, by)
    named = [name if name and not one.patient else "" for name, one in zip(naming, given, strict=True)]
    return found, [
        *notes,
        *study_notes(studies),
        *header_notes([image.file for image in images], headers, named, found),
    ]


def _with_listed(
    folder: Path,
    images: Sequence[Placed],
    given: Sequence[Subject],
    known: Sequence[Subject],
    by: Callable[[Placed], Subject],
) -> list[Subject]:
    """Each image's subject: from the sheet, else its header, else its name; Faults if they contradict each other."""
    unlisted = next((image.file for image, one in zip(images, given, strict=True) if not one.patient), None)
    found, faults = [], []
    for image, one, header in zip(images, given, known, strict=True):
        # The name is used only if the patient is not known otherwise: it may not follow the naming rule.
        named = (
            by(image) if not header.patient and (unlisted or not one.patient) else Subject("", side_in_path(image.file))
        )
        patient, side = header.patient or named.patient, header.side or named.side
        if one.patient and unlisted and patient != one.patient:
            faults.append(
                f"{image.file}: is listed as patient '{one.patient}', but its name or header gives '{patient}', and "
                f"'{unlisted}', which is not listed, may show the same person; list the patient of every image"
            )
        if one.side and side not in ("", one.side):
            faults.append(f"{image.file}: is listed as side {one.side}, but its name or header gives {side}")
        found.append(Subject(one.patient or patient, one.side or side))
    if faults:
        raise Faults(
            faults,
            summary=f"{folder}: {counted(len(faults), 'error')}; fix the sheet, or ignore its patients (--column "
            "'patient=') or sides (--column 'side='):",
        )
    return found


def _patient_of(header: Header) -> str:
    """The PatientID, without the side at its end if that is the file's laterality."""
    patient, side = split_side(header.patient)
    return patient if side and side == header.side else header.patient


def _rule(
    images: Sequence[Placed], pattern: str | None, *, only: bool
) -> tuple[Callable[[Placed], Subject], list[str]]:
    """A function that infers patient and side of images without a known patient, and a sentence that describes it.

    ``only``: there is only one image, so no two can be mixed up.
    """
    by_file_note = "The patient is the file's name without a side (L, R, left, right) at its end."
    by_folder_note = "The patient is the name of the file's folder, without a side at its end"
    if pattern == FILE:
        return by_file, [by_file_note, *_inside_note(images)]
    if pattern == FOLDER:
        return by_folder, [f"{by_folder_note}."]
    if pattern is not None:
        return _by_expression(pattern), [f"The patient is what '{pattern}' matches."]
    if not images:
        return by_file, []
    _refuse_shared_names(images)
    refuse_numbered(
        {image.file: by_file(image).patient for image in images if not names_nobody(image)},
        [image.file for image in images],
    )
    nobody = [image for image in images if names_nobody(image)]
    if not nobody or only:
        return by_file, [by_file_note, *_inside_note(images)]
    misplaced = next((image for image in nobody if not image.folders), None)
    if misplaced:
        raise UserError(
            f"{misplaced.file}: neither the name '{last_name(misplaced)}' nor a folder identifies the patient; put the "
            "images of each patient into a folder named after the patient (below the grade folder), or "
            f"{_hint(images)}"
        )
    deep = next((image for image in images if len(image.folders) > 1), None)
    if deep:
        raise UserError(f"{deep.file}: which of the folders {quoted(deep.folders)} is the patient? {_hint(images)}")
    reason = f", since names such as '{last_name(nobody[0])}' do not identify a patient; --pattern overrides this."
    return lambda image: by_folder(image) if image.folders else by_file(image), [by_folder_note + reason]


def _hint(images: Sequence[Placed]) -> str:
    """The options that determine the patient, as far as they apply to these images."""
    ways = ["--pattern folder if each folder contains one patient"] if all(image.folders for image in images) else []
    ways.append("--pattern file if the file's name (without a side at its end) is the patient's in every folder")
    return f"write {', '.join(ways)}, or a regular expression with a group 'patient'"


def _inside_note(images: Sequence[Placed]) -> list[str]:
    """A note on names with a side that is not at their end: the two knees of one person then have two names."""
    names = [last_name(image) for image in images if not names_nobody(image)]
    inside = [name for name in names if _SIDE_INSIDE.search(name)]
    if not inside:
        return []
    pattern = suggested_pattern([image.file for image in images])
    hint = f"--pattern {pasted(pattern)}" if pattern else "--pattern with groups 'patient' and 'side'"
    return [
        f"{counted(len(inside), 'name')} ('{inside[0]}' first) with a side that is not at the end and is therefore ignored: "
        f"the two knees of one person count as two patients and may end up in both training and test; give {hint}."
    ]


def _refuse_shared_names(images: Sequence[Placed]) -> None:
    """Refuse names that occur in several folders: these may be visits of one patient or images of several patients."""
    places: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    for image in images:
        if not names_nobody(image):
            places[by_file(image).patient].setdefault(image.folders, image.file)
    shared = [list(files.values()) for files in places.values() if len(files) > 1]
    if not shared:
        return
    problem = f"one name in two folders ({counted(len(shared), 'such name')})"
    for files in shared:
        masks = [file for file in files if _folder_of_masks(file)]
        others = [file for file in files if file not in masks]
        if masks and others:
            raise UserError(
                f"{others[0]} and {masks[0]}: {problem}; if '{_folder_of_masks(masks[0])}' contains masks, move them to "
                f"'masks', each under the path of its image (masks/{others[0]}), or elsewhere and name them in the manifest's "
                f"column 'mask'; if it contains images, {_hint(images)}"
            )
    raise UserError(
        f"{shared[0][0]} and {shared[0][1]}: {problem}: one patient or two? {_hint(images)}; a grade folder is named "
        "after its number"
    )


def _folder_of_masks(file: str) -> str:
    """The path of a folder above ``file`` that is named like a folder of masks; '' if there is none."""
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
