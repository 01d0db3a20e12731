"""The image that exported objects refer to: the source, its de-identified copy, or generated identifiers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset

from knee.errors import UserError
from knee.images.slices import split_slice
from knee.review.cases import CaseFacts
from knee.review.dicom.identity import deidentified, empty_unknown, fill_required, name_patient, salted_uid

_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class References:
    """How the objects of an export name patients, studies and images."""

    salt: bytes
    keep_identity: bool = False
    shift_dates: bool = False

    def of(
        self,
        facts: CaseFacts,
        source: Dataset | None,
        path: Path,
        *,
        spacing_mm: tuple[float, float] | None,
        notes: list[str],
    ) -> Dataset:
        """The reference of a case; ``source`` is its DICOM file, if it is one.

        What is left out of it is added to ``notes``. Raises UserError where the source lacks the identifiers that a
        reference needs.
        """
        if source is None:
            return self._made_up(facts, spacing_mm)
        if int(source.get("NumberOfFrames") or 1) > 1:
            raise UserError(
                f"{path}: is a frame of a multi-frame file, of which no objects are made; export as png or nifti"
            )
        missing = [keyword for keyword in _IDENTIFIERS if not source.get(keyword)]
        if missing:
            raise UserError(
                f"{path}: has no {', '.join(missing)}, so objects cannot refer to it; export as png or nifti instead"
            )
        reference = source
        if not self.keep_identity:
            given = {"patient": facts.patient, "shift_dates": self.shift_dates}
            reference = deidentified(source, facts.case, self.salt, **given)  # type: ignore[arg-type]
        fill_required(reference)
        if emptied := empty_unknown(reference):
            notes.append(f"{', '.join(emptied)}: the value in its file is not valid DICOM, and is left empty")
        if not (reference.get("ImageLaterality") or reference.get("Laterality")):
            # Of the image, since other images of the series may show the other side.
            if facts.side:
                reference.ImageLaterality = facts.side
            else:
                reference.Laterality = ""
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


def read_dicom(path: Path) -> Dataset | None:
    """The whole file as DICOM; None where it has another format. The file was read as an image before."""
    path, _ = split_slice(path)
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path)
