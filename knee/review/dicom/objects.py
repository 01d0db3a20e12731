"""What all our DICOM objects share: series and identifiers, research notice, side; and the Secondary Capture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from knee.review import CLAIM
from knee.review.dicom.identity import NOT_STATED, salted_uid
from knee.review.page.html import ReviewRun
from knee.review.picture import Picture

MAKER = "dcmt-knee"
NOTICE = "RESEARCH - not for diagnostic use"
KNEE = Code("72696002", "SCT", "Knee region structure")
LOCAL = "99DCMT"
"""The designator of our own codes, which every object that uses them declares."""
LATERALITY = {"L": Code("7771000", "SCT", "Left"), "R": Code("24028007", "SCT", "Right")}
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
_SOURCE = Code("121322", "DCM", "Source image for image processing operation")


@dataclass(frozen=True)
class Place:
    """The series of an object and its identifier, which do not change when the object is made again."""

    series_uid: str
    series_number: int
    instance_uid: str
    instance_number: int
    version: str
    """Of this software."""

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that all kinds of highdicom objects take."""
        return {
            "series_instance_uid": self.series_uid,
            "series_number": self.series_number,
            "sop_instance_uid": self.instance_uid,
            "instance_number": self.instance_number,
            "manufacturer": MAKER,
        }

    def tracking(self, what: str) -> UID:
        """The identifier of a part of the object."""
        return salted_uid(self.instance_uid.encode(), what)

    @property
    def device(self) -> dict[str, Any]:
        """Arguments that name this software, for objects that need a device."""
        return {
            "manufacturer_model_name": "Knee attention review",
            "software_versions": self.version,
            "device_serial_number": "0",
        }


def secondary_capture(picture: Picture, reference: Dataset, run: ReviewRun, place: Place, *, title: str) -> Dataset:
    """The picture as an RGB Secondary Capture of the reference's study, which every viewer shows."""
    orientation = recorded_orientation(reference) or _nearest_orientation(reference)
    capture: Dataset = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=reference,
        pixel_array=picture.pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # required here even if unknown; replaced below by the recorded one
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **place.common,
    )
    capture.PatientOrientation = list(orientation) if orientation else None
    _set_spacing(capture, reference, picture.factor)
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    capture.DerivationDescription = CLAIM
    if "SOPInstanceUID" in reference and "PixelData" in reference:
        capture.SourceImageSequence = [_referenced(reference)]
    if reference.get("ImageComments"):
        capture.ImageComments = reference.ImageComments
    finish(capture, reference, run, place, title)
    return capture


def _set_spacing(capture: Dataset, reference: Dataset, factor: int) -> None:
    """The spacing of an enlarged picture under the source's own attributes.

    ImagerPixelSpacing, at the detector of a projection, is not that in the patient, and is not made to look like it.
    """
    for keyword in _SPACINGS:
        if spacing := reference.get(keyword):
            setattr(capture, keyword, [round(float(mm) / factor, 8) for mm in spacing])
    if reference.get("PixelSpacing") and reference.get("PixelSpacingCalibrationType"):
        capture.PixelSpacingCalibrationType = reference.PixelSpacingCalibrationType
        capture.PixelSpacingCalibrationDescription = reference.get("PixelSpacingCalibrationDescription") or NOT_STATED


def finish(made: Dataset, reference: Dataset, run: ReviewRun, place: Place, title: str) -> None:
    """Add what highdicom does not copy from the reference, and the research notice of every object."""
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SeriesDescription = f"{title} {NOTICE}"[:64]
    carried = ("PatientIdentityRemoved", "DeidentificationMethod")
    for keyword in carried if made.Modality == "SR" else (*carried, "BodyPartExamined"):
        if keyword in reference:
            made[keyword] = reference[keyword]
    if made.Modality != "SR":
        _set_side(made, reference)
    equipment = hd.ContributingEquipment(
        manufacturer=MAKER,
        purpose_of_reference=Code("109102", "DCM", "Processing Equipment"),
        manufacturer_model_name=version_of(run),
        software_versions=place.version,
        contribution_description=NOTICE,
    )
    made.ContributingEquipmentSequence = [equipment, *made.get("ContributingEquipmentSequence", [])]
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = LOCAL, MAKER
    scheme.CodingSchemeResponsibleOrganization = MAKER
    made.CodingSchemeIdentificationSequence = [scheme, *made.get("CodingSchemeIdentificationSequence", [])]


def _set_side(made: Dataset, reference: Dataset) -> None:
    """The side as the source gives it: of its series (Laterality), or of the image, since a series may show both sides.

    A knee is one of a pair, so a series of unknown side needs Laterality, of no value.
    """
    if "Laterality" in made:
        del made.Laterality
    if "SharedFunctionalGroupsSequence" in made:
        return  # the frames have their own anatomy
    if reference.get("Laterality") in ("L", "R") or not reference.get("ImageLaterality"):
        made.Laterality = reference.get("Laterality") or ""
    else:
        made.ImageLaterality = reference.ImageLaterality


def version_of(run: ReviewRun) -> str:
    """Names the weights, their hash first because a long run name is cut off."""
    # 64 characters are allowed, padding included.
    return one_value(f"model {run.model_hash}, run {run.run}", 60)


def one_value(text: str, length: int) -> str:
    """Text as one DICOM value: a backslash would separate two values, and control characters are not allowed."""
    return "".join(letter if letter.isprintable() else " " for letter in text.replace("\\", "/"))[:length].strip()


def _referenced(reference: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.SOPClassUID
    item.ReferencedSOPInstanceUID = UID(reference.SOPInstanceUID)
    item.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(_SOURCE)]
    return item


def side_of(reference: Dataset) -> str | None:
    """The side of the image; None if the reference does not give it."""
    for keyword in ("ImageLaterality", "Laterality"):
        if reference.get(keyword) in ("L", "R"):
            return str(reference.get(keyword))
    return None


def recorded_orientation(reference: Dataset) -> tuple[str, str] | None:
    """Directions of rows and columns as recorded in the file: ``P``, or ``PR`` for a direction between two axes."""
    recorded = reference.get("PatientOrientation")
    if not recorded or isinstance(recorded, str) or len(recorded) != 2:
        return None
    rows, columns = (str(letters).strip() for letters in recorded)
    return (rows, columns) if all(re.fullmatch("[APRLHF]{1,3}", letters) for letters in (rows, columns)) else None


def _nearest_orientation(reference: Dataset) -> tuple[str, str] | None:
    """Directions of rows and columns as the nearest axes of the patient."""
    cosines = reference.get("ImageOrientationPatient")
    if not cosines or len(cosines) != 6:
        return None
    return _nearest_axis(cosines[:3]), _nearest_axis(cosines[3:])


def _nearest_axis(direction: Any) -> str:
    """DICOM's patient axes run to the left, to the back and to the head.

    >>> _nearest_axis([0.1, 0.9, 0.0]), _nearest_axis([0.0, 0.0, -1.0])
    ('P', 'F')
    """
    values = [float(value) for value in direction]
    axis = int(np.argmax(np.abs(values)))
    return ("LPH" if values[axis] > 0 else "RAF")[axis]
