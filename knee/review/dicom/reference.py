"""The image that exported objects refer to: the source, its de-identified copy, or generated identifiers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import highdicom as hd
import pydicom
from pydicom import Dataset
from pydicom.uid import UID, EnhancedMRImageStorage, MRImageStorage

from knee.errors import UserError
from knee.images.dicom_pixels import single_frame
from knee.images.slices import split_slice
from knee.review.cases import CaseFacts
from knee.review.dicom.identity import deidentified, empty_unknown, fill_required, name_patient, salted_uid
from knee.review.dicom.objects import KNEE, side_of

_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_EMPTIED = {
    "CR": ("BodyPartExamined", "ViewPosition"),
    "DX": ("DetectorType", "AcquisitionContextSequence"),
    "MR": ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
}
"""By modality, attributes of an image that may be empty but not absent, as many files have them."""


class Frame(NamedTuple):
    """A frame of a multi-frame image."""

    image: str
    """SOPInstanceUID of the image."""
    number: int
    """From 0."""

    def stand_in(self, salt: bytes) -> UID:
        """The identifier of the frame as an image of its own."""
        return salted_uid(salt, f"{self.image} frame {self.number}")


@dataclass(frozen=True)
class References:
    """How the objects of an export name patients, studies and images."""

    salt: bytes
    keep_identity: bool = False
    shift_dates: bool = False
    frames: dict[str, Frame] = field(default_factory=dict)
    """By the identifiers that stand in for them in references, until ``refer_to_frames`` replaces these."""

    def of(
        self,
        facts: CaseFacts,
        source: Dataset | None,
        path: Path,
        *,
        spacing_mm: tuple[float, float] | None,
        notes: list[str],
    ) -> Dataset:
        """The reference of a case; ``source`` is its DICOM file, if it is one, or one frame of it.

        The de-identified copy of a frame of an Enhanced MR is an MR image of its own.
        What is left out of it is added to ``notes``. Raises UserError where the source lacks the identifiers that a
        reference needs.
        """
        if source is None:
            return self._made_up(facts, spacing_mm)
        number = split_slice(path)[1]
        if number is not None and source.get("SOPClassUID") != EnhancedMRImageStorage:
            raise UserError(
                f"{path}: is a frame of a multi-frame file that is no Enhanced MR, of which no objects are made; "
                "export as png or nifti"
            )
        missing = [keyword for keyword in _IDENTIFIERS if not source.get(keyword)]
        if missing:
            raise UserError(
                f"{path}: has no {', '.join(missing)}, so objects cannot refer to it; export as png or nifti instead"
            )
        frame = None if number is None else Frame(str(source.SOPInstanceUID), number)
        reference = source
        if not self.keep_identity:
            given = {"patient": facts.patient, "shift_dates": self.shift_dates}
            reference = deidentified(source, facts.case, self.salt, **given)  # type: ignore[arg-type]
        if frame:
            # What makes objects takes one image for each slice.
            reference.SOPClassUID, reference.SOPInstanceUID = MRImageStorage, frame.stand_in(self.salt)
            reference.InstanceNumber = frame.number + 1
            reference.pop("NumberOfFrames", None)
            if self.keep_identity:
                self.frames[str(reference.SOPInstanceUID)] = frame
            else:
                _make_single(reference)
        fill_required(reference)
        if emptied := empty_unknown(reference):
            notes.append(f"{', '.join(emptied)}: the value in its file is not valid DICOM, and is left empty")
        if not self.keep_identity:
            _fill_kind(reference)
        _set_side(reference, facts.side)
        return reference

    def _made_up(self, facts: CaseFacts, spacing_mm: tuple[float, float] | None) -> Dataset:
        """Generated identifiers for an image that is not DICOM, the same at each export: a study for each patient."""
        made = Dataset()
        patient = facts.patient or facts.case
        made.StudyInstanceUID = salted_uid(self.salt, f"study of {patient}")
        made.SeriesInstanceUID = salted_uid(self.salt, f"series of {facts.case}")
        name_patient(made, patient, self.salt)
        fill_required(made)
        made.Modality, made.BodyPartExamined = "OT", "KNEE"
        made.ImageComments = f"case {facts.case}"
        made.Laterality = facts.side
        if spacing_mm:
            made.PixelSpacing = [float(mm) for mm in spacing_mm]
        return made


def _make_single(image: Dataset) -> None:
    """Make the copy of a frame a whole MR image; what an Enhanced MR records otherwise is given as research mode."""
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    for keyword in ("ScanningSequence", "SequenceVariant"):
        if not image.get(keyword):
            setattr(image, keyword, {"ScanningSequence": "RM", "SequenceVariant": "NONE"}[keyword])


def _fill_kind(image: Dataset) -> None:
    """Add missing attributes that an image of its modality must have: the knee as the region of a radiograph, others empty.

    The shape of a digital radiograph's presentation table follows from its photometric interpretation (PS3.3, C.8.11.3.1.2).
    """
    for keyword in _EMPTIED.get(str(image.get("Modality")), ()):
        if keyword not in image:
            setattr(image, keyword, [] if keyword.endswith("Sequence") else None)
    if image.get("Modality") == "DX":
        image.PresentationLUTShape = "INVERSE" if image.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
        if not image.get("AnatomicRegionSequence"):
            image.AnatomicRegionSequence = [hd.sr.CodedConcept.from_code(KNEE)]


def _set_side(reference: Dataset, side: str) -> None:
    """Give ``side`` where the reference has none: of the image, since other images of its series may show the other side.

    So may radiographs whose own files call it the side of the series. An MR series is of one knee.
    """
    if reference.get("Laterality") and reference.get("Modality") != "MR":
        reference.ImageLaterality = side_of(reference) or reference.Laterality
        del reference.Laterality
    if not (reference.get("ImageLaterality") or reference.get("Laterality")):
        setattr(reference, "ImageLaterality" if side else "Laterality", side)


def refer_to_frames(made: Dataset, frames: Mapping[str, Frame]) -> None:
    """Replace references to the stand-ins of frames by the image and the frame, in place.

    Lists of the images of a series name each image once, without its frames.
    """
    for element in made if frames else ():
        if element.VR != "SQ":
            continue
        listed = (
            element.keyword in ("ReferencedInstanceSequence", "ReferencedSOPSequence") and "SeriesInstanceUID" in made
        )
        kept: dict[object, Dataset] = {}
        for item in element.value:
            frame = frames.get(str(item.get("ReferencedSOPInstanceUID", "")))
            if frame:
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = EnhancedMRImageStorage, UID(frame.image)
                if not listed:
                    item.ReferencedFrameNumber = frame.number + 1
            refer_to_frames(item, frames)
            kept.setdefault(frame.image if frame and listed else id(item), item)
        element.value = list(kept.values())


def read_dicom(path: Path) -> Dataset | None:
    """The whole file, or its frame, as DICOM; None where it has another format. It was read as an image before."""
    path, frame = split_slice(path)
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        return dataset if frame is None else single_frame(dataset, frame)
