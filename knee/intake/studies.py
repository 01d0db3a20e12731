"""Infer patients from the studies of DICOM files, and describe how headers were used."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from knee.errors import counted
from knee.images.dicom import Subject
from knee.intake.headers import Header
from knee.intake.naming import Placed, by_file, names_nobody, side_in_path, split_side


def study_patients(
    images: Sequence[Placed], headers: Sequence[Header | None], unnamed: Sequence[bool]
) -> dict[str, str]:
    """The patient of images without a PatientID that belong to a study with several images: all show one person.

    The patient is their folder, if it contains all of them and no other study; else their file name, if all have the same;
    else a digest of the study's identifier.
    """
    members: dict[str, list[Placed]] = defaultdict(list)
    for image, header, nameless in zip(images, headers, unnamed, strict=True):
        if header and header.study and nameless:
            members[header.study].append(image)
    holding = Counter(folder for same in members.values() for folder in {image.folders for image in same})
    patients: dict[str, str] = {}
    for study, same in members.items():
        names, folders = {by_file(image).patient for image in same}, {image.folders for image in same}
        if len(same) == 1:
            continue
        patient = f"study-{blake2b(study.encode(), digest_size=4).hexdigest()}"
        if len(folders) == 1 and (folder := folders.pop()) and holding[folder] == 1:
            patient = split_side(folder[-1])[0]
        elif len(names) == 1 and not names_nobody(same[0]):
            patient = names.pop()
        patients |= {image.file: patient for image in same}
    return patients


def study_notes(studies: Mapping[str, str]) -> list[str]:
    """A sentence about the result of ``study_patients``."""
    if not studies:
        return []
    patients = len(set(studies.values()))
    return [
        f"{counted(len(studies), 'DICOM file')} without a PatientID: those of one study count as one patient, "
        f"{counted(patients, 'patient')} in total; if the study's identifier was blanked, give --pattern."
    ]


def header_notes(
    files: Sequence[str],
    headers: Sequence[Header | None],
    named: Sequence[str],
    found: Sequence[Subject],
) -> list[str]:
    """Sentences on how DICOM headers were used; ``named``: the patients that were taken from them."""
    notes = []
    counts = Counter(filter(None, named))
    dicom = sum(header is not None for header in headers)
    if counts:
        others = len(files) - counts.total()
        notes.append(
            f"The patient of {counts.total()} of {len(files)} images is the PatientID of the DICOM file, which the "
            f"manifest then contains{f'; of the other {others}, it is inferred as above' if others else ''}."
        )
    if len(counts) == 1 and counts.total() > 1:
        notes.append("All these have one PatientID, so they count as one patient; if it was blanked, give --pattern.")
    if dicom:
        sides = sum(bool(header and header.side) for header in headers)
        notes.append(f"{sides} of {counted(dicom, 'DICOM file')} give the side.")
    differing = [
        file
        for file, header, subject in zip(files, headers, found, strict=True)
        if header and header.side == subject.side != "" and side_in_path(file) not in ("", subject.side)
    ]
    if differing:
        notes.append(
            f"{counted(len(differing), 'file')} ('{differing[0]}' first) have another side in their names than in the DICOM "
            "header; the header's side is used."
        )
    return notes
