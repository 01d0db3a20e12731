"""Verdicts that readers made in a DICOM viewer: structured reports on exported or original images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from knee.errors import UserError
from knee.images.slices import split_slice
from knee.io.plain import shown
from knee.review.dicom.export import object_uid
from knee.review.dicom.identity import salted_uid, uid_within
from knee.review.dicom.objects import MAKER
from knee.review.dicom.reference import Frame
from knee.review.verdicts_file import VERDICTS, Expected, Verdict
from knee.review.writer import NETWORKS

_GRADE = re.compile(r"(?:kl|grade|kellgren[- ]lawrence)(?: grade)?\s*[:=]?\s*(\d{1,2})", re.IGNORECASE)
_GROUP, _OBSERVER, _TRACKING = "125007", "121008", "112039"


class Target(NamedTuple):
    """What an SR may refer to: the image of a case, or an object that shows the model's output for it."""

    case: str
    of_model: bool = False


@dataclass
class _Part:
    """A measurement group of a report, or what is outside of all groups: its references and texts."""

    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def targets(images: Iterable[tuple[str, Path]], salt: bytes, *, model_hash: str, threshold: float) -> dict[str, Target]:
    """The cases by SOPInstanceUID of their images, of the de-identified copies, and of this model's captures and reports.

    ``UID#k`` is frame k of a multi-frame image.

    ``images`` are cases with their files; those that are not DICOM, or missing, are skipped.
    """
    found: dict[str, Target] = {}
    for case, path in images:
        own, number = _instance(path), split_slice(path)[1]
        if not own:
            continue
        frame = None if number is None else Frame(own, number)
        uids = (own, str(salted_uid(salt, own))) if frame is None else (f"{own}#{number}", str(frame.stand_in(salt)))
        for uid in uids:
            found[uid] = Target(case)
            # Objects of a frame are named after what stands in for it.
            uid = uids[1] if frame else uid
            for network in NETWORKS:
                for kind in ("capture", "report"):
                    made = object_uid(salt, f"{model_hash} {network} {kind}", threshold, [uid])
                    found[str(made)] = Target(case, of_model=True)
    return found


def studies_of(images: Iterable[tuple[str, Path]], salt: bytes) -> set[str]:
    """The studies of images, given with their patients, and those of their de-identified copies."""
    found = set()
    for patient, path in images:
        with suppress(OSError, InvalidDicomError, ValueError, AttributeError):
            image = _read(split_slice(path)[0], "StudyInstanceUID", "PatientID")
            study = str(image.get("StudyInstanceUID") or "")
            patient = patient or str(image.get("PatientID") or study)
            found |= {study, str(uid_within(salt, study, patient))} if study else set()
    return found


def find_reports(folder: Path, *, where: str = "") -> list[Path]:
    """The structured reports in a folder that a person made. Raises UserError, naming ``where``, if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one of structured reports that readers saved in their viewer")
    reports = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_report(path)]
    found = [path for path in reports if not _is_ours(_read(path))]
    if not found:
        ours = f" but {len(reports)} of our own" if reports else ""
        raise UserError(f"{where or folder}: contains no structured report{ours}; save the readers' reports there")
    return found


def read_report(path: Path, expected: Expected, faults: list[str], *, known: Mapping[str, Target]) -> list[Verdict]:
    """The verdicts of one report; its errors are added to ``faults``.

    Text ``KL 2`` or ``grade 2`` is a grade, ``agree``, ``disagree``, ``unsure`` and ``bad image`` are verdicts; other texts
    become the comment, after the report's identifier. The grade is never a blind one: who reads in a viewer may see the
    model's series. A report that refers to one is marked so.
    """
    report = _read(path)
    reader, time, wrong = _reader(report), _time(report), []
    if not reader:
        wrong.append(
            "names no reader (no person is its observer); sign in to the viewer with your name, and save it again"
        )
    if not time:
        wrong.append("has no valid ContentDate and ContentTime; save it again")
    by_case: dict[str, list[str]] = {}
    seen = {item for item in _evidence(report) if item in known and known[item].of_model}
    parts = list(_parts(report, known))
    references = [uid for part in parts for uid in part.images]
    if not references:
        wrong.append("refers to no image; draw the measurement on the image that you grade")
    elif not any(uid in known for uid in references):
        wrong.append(
            f"refers to no case of this run and model (image {references[0]:.64}); import it into the run whose export was read"
        )
    for part in parts:
        cases = {known[uid].case for uid in part.images or references if uid in known}
        if part.texts and len(cases) > 1:
            wrong.append(f"text {shown(part.texts[0])} refers to {len(cases)} cases; save a report for each image")
        for case in cases:
            by_case.setdefault(case, []).extend(part.texts)
    verdicts = []
    mark = (
        " (with the model's output in view)" if seen or any(known[u].of_model for u in references if u in known) else ""
    )
    for case, texts in by_case.items():
        grade, verdict, others = _understood(texts, expected, wrong)
        if grade is None and not verdict:
            wrong.append(
                "has neither a grade (KL 2) nor agree, disagree, unsure or bad image; write one of them as text"
            )
        origin = f"DICOM report {report.get('SOPInstanceUID', '')}{mark}"
        comment = "; ".join([origin, *others])[:2000]
        verdicts.append(Verdict(case, reader, time, expected.run, expected.model_hash, None, grade, verdict, comment))
    faults.extend(f"{path.name}: {fault}" for fault in dict.fromkeys(wrong))
    return [] if wrong else verdicts


def _understood(texts: Iterable[str], expected: Expected, wrong: list[str]) -> tuple[int | None, str, list[str]]:
    """The grade, the verdict and the other texts of a case; what is contradictory or unknown is added to ``wrong``."""
    grades: set[int] = set()
    verdicts: set[str] = set()
    others = []
    for text in dict.fromkeys(" ".join(text.split()) for text in texts):
        word = text.casefold().replace(" ", "_")
        if match := _GRADE.fullmatch(text):
            grades.add(int(match[1]))
        elif word in VERDICTS:
            verdicts.add(word)
        elif text:
            others.append(text)
    for grade in sorted(grades):
        if grade >= expected.grades:
            wrong.append(f"grade {grade} is not 0–{expected.grades - 1}; correct it in the viewer, and save it again")
    if len(grades) > 1 or len(verdicts) > 1:
        both = ", ".join([*map(str, sorted(grades)), *sorted(verdicts)])
        wrong.append(f"gives several verdicts on one case ({both}); keep one")
    return next(iter(grades), None), next(iter(verdicts), ""), others


def _image(reference: Dataset, known: Mapping[str, Target]) -> str:
    """The image, or its frame where frames are cases of their own: viewers name frame 1 of a single-frame image, too."""
    uid, frame = str(reference.get("ReferencedSOPInstanceUID", "")), reference.get("ReferencedFrameNumber")
    of_frame = f"{uid}#{frame - 1}" if isinstance(frame, int) else uid
    return of_frame if of_frame in known else uid


def _parts(report: Dataset, known: Mapping[str, Target]) -> Iterator[_Part]:
    rest = _Part()
    groups: list[_Part] = []

    def walk(items: Iterable[Dataset], part: _Part) -> None:
        for item in items:
            concept = _code(item, "ConceptNameCodeSequence")
            inside = part
            if concept == _GROUP:
                inside = _Part()
                groups.append(inside)
            for reference in item.get("ReferencedSOPSequence") or ():
                inside.images.append(_image(reference, known))
            if item.get("ValueType") == "TEXT" and concept != _TRACKING:
                inside.texts.append(str(item.get("TextValue", "")))
            # Viewers write a label that a reader typed as the meaning of a code for free text.
            for code in item.get("ConceptCodeSequence") or ():
                if "FREETEXT" in str(code.get("CodeValue") or code.get("LongCodeValue") or "").upper():
                    inside.texts.append(str(code.get("CodeMeaning", "")))
            walk(item.get("ContentSequence") or (), inside)

    walk(report.get("ContentSequence") or (), rest)
    yield rest
    yield from groups


def _code(item: Dataset, keyword: str) -> str:
    return next((str(code.get("CodeValue", "")) for code in item.get(keyword) or ()), "")


def _evidence(report: Dataset) -> Iterator[str]:
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in report.get(keyword) or ():
            for series in study.get("ReferencedSeriesSequence") or ():
                for item in series.get("ReferencedSOPSequence") or ():
                    yield str(item.get("ReferencedSOPInstanceUID", ""))


def _reader(report: Dataset) -> str:
    """The person who observed or verified, as ``Dr Jane Smith``; '' if none is named."""
    names = [
        item.get("PersonName")
        for item in report.get("ContentSequence") or ()
        if _code(item, "ConceptNameCodeSequence") == _OBSERVER
    ]
    names += [item.get("VerifyingObserverName") for item in report.get("VerifyingObserverSequence") or ()]
    names += [item.get("PersonName") for item in report.get("AuthorObserverSequence") or ()]
    for name in filter(None, names):
        parts = (name.name_prefix, name.given_name, name.family_name)
        if text := " ".join(part.strip() for part in parts if part.strip()):
            return text[:100]
    return ""


def _time(report: Dataset) -> str:
    """ContentDate and ContentTime as ISO 8601; UTC where the report gives no time zone."""
    digits = f"{report.get('ContentDate') or ''}{str(report.get('ContentTime') or '')[:6]}"
    zone = str(report.get("TimezoneOffsetFromUTC") or "+0000").strip()
    try:
        return datetime.strptime(f"{digits}{zone}", "%Y%m%d%H%M%S%z").isoformat()
    except ValueError:
        return ""


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return False
        return bool(_read(path, "Modality").get("Modality") == "SR")
    except (OSError, InvalidDicomError, ValueError, AttributeError):
        return False


def _is_ours(report: Dataset) -> bool:
    return str(report.get("Manufacturer") or "") == MAKER and not _reader(report)


def _instance(path: Path) -> str:
    """SOPInstanceUID of a DICOM file; '' for other files and those that cannot be read."""
    try:
        return str(_read(split_slice(path)[0], "SOPInstanceUID").get("SOPInstanceUID") or "")
    except (OSError, InvalidDicomError, ValueError, AttributeError):
        return ""


def _read(path: Path, *tags: str) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags) or None)
