"""De-identification: copies that hold only listed attributes, with salted identifiers."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from knee.review.dicom.terms import limit_to_terms

_KEPT = """
SOPClassUID ImageType Modality PresentationIntentType InstanceNumber SeriesNumber
SamplesPerPixel PhotometricInterpretation PlanarConfiguration Rows Columns BitsAllocated BitsStored HighBit
PixelRepresentation PixelData PixelAspectRatio SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue
RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction VOILUTSequence
PresentationLUTShape PixelIntensityRelationship PixelIntensityRelationshipSign
LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod BurnedInAnnotation
PixelSpacing ImagerPixelSpacing PixelSpacingCalibrationType EstimatedRadiographicMagnificationFactor
ImageOrientationPatient ImagePositionPatient SliceThickness SpacingBetweenSlices SliceLocation
Laterality ImageLaterality BodyPartExamined PatientOrientation ViewPosition PatientPosition PositionerType DetectorType
AnatomicRegionSequence ViewCodeSequence
ScanningSequence SequenceVariant ScanOptions MRAcquisitionType RepetitionTime EchoTime EchoTrainLength InversionTime
MagneticFieldStrength FlipAngle
"""
KEPT = tuple(_KEPT.split())
"""Attributes of the image itself, by keyword; all others, including private ones, are left out."""

_CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
_LOOKUP = ("LUTDescriptor", "LUTData")
KEPT_WITHIN = {
    "AnatomicRegionSequence": _CODE,
    "ViewCodeSequence": _CODE,
    "ModalityLUTSequence": (*_LOOKUP, "ModalityLUTType"),
    "VOILUTSequence": _LOOKUP,
}
"""Attributes kept within the items of each sequence in ``KEPT``: no free text, no nested sequence, nothing private."""

EMPTIED = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PatientBirthDate",
    "PatientSex",
    "Manufacturer",
)
"""Attributes that are required but may be empty."""

NOT_STATED = "Not stated"
_MOST_SHIFT = 365  # days


def deidentified(source: Dataset, case: str, salt: bytes, *, patient: str = "", shift_dates: bool = False) -> Dataset:
    """A copy of an image with only the attributes in ``KEPT`` and ``KEPT_WITHIN``, named after its patient.

    Its identifiers are replaced by salted ones: a patient stays one patient and a study one study, and the holder of the
    salt can find the source. The case is in the image comments. ``patient`` is PatientID if not given, else the study.
    ``shift_dates`` keeps the study's date, moved into the past by 1–365 days, the same for all studies of a patient. Pixels,
    if there are any, are copied unchanged, including burned-in text; compressed pixels are decompressed. Other values are
    limited to the standard's terms and to numbers.
    """
    patient = patient or str(source.get("PatientID") or source.get("StudyInstanceUID") or case)
    copy = Dataset()
    for keyword in KEPT:
        if keyword not in source:
            continue
        if keyword not in KEPT_WITHIN:
            copy[keyword] = source[keyword]
        elif items := [item for item in (_rebuilt(item, keyword) for item in source[keyword].value) if item]:
            setattr(copy, keyword, items)
    if "AcquisitionContextSequence" in source:
        copy.AcquisitionContextSequence = []  # may hold free text
    limit_to_terms(copy)
    name_patient(copy, patient, salt)
    copy.ImageComments = f"case {case}"
    if "PixelSpacingCalibrationType" in copy:
        copy.PixelSpacingCalibrationDescription = NOT_STATED  # required, but free text
    # With the patient, so that a study or series of two patients, by the manifest, is not one of both.
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if keyword in source:
            setattr(copy, keyword, uid_within(salt, str(source[keyword].value), patient))
    for keyword in ("SOPInstanceUID", "FrameOfReferenceUID"):
        if keyword in source:
            setattr(copy, keyword, salted_uid(salt, str(source[keyword].value)))
    if shift_dates:
        copy.StudyDate = shifted_date(str(source.get("StudyDate") or ""), patient, salt)
        copy.LongitudinalTemporalInformationModified = "MODIFIED"
    fill_required(copy)
    if "PixelData" in copy:
        _copy_pixels(source, copy)
    copy.file_meta = type(source.file_meta)()
    copy.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    copy.file_meta.MediaStorageSOPClassUID = copy.SOPClassUID
    copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    return copy


def _copy_pixels(source: Dataset, copy: Dataset) -> None:
    """Decompress the pixels of the copy, and put their bytes into little-endian order."""
    copy.file_meta = source.file_meta
    syntax = copy.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        copy.decompress(generate_instance_uid=False)
    elif not syntax.is_little_endian:
        # OW is of 16-bit words, so pixels of 8 bits are swapped in pairs.
        word = max(copy.BitsAllocated // 8, 2 if copy["PixelData"].VR == "OW" else 1)
        copy.PixelData = np.frombuffer(copy.PixelData, f">u{word}").astype(f"<u{word}").tobytes()
    _cut_pixels(copy)


def name_patient(image: Dataset, patient: str, salt: bytes) -> None:
    """Name the patient by a salted hash; the attributes are the same in all objects of the patient."""
    name = patient_name(salt, patient)
    # The caret marks the text before it as the whole family name.
    image.PatientName, image.PatientID = f"{name}^", name
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "Attributes kept by list; identifiers replaced"


def patient_name(salt: bytes, patient: str) -> str:
    """The name of a patient in exported objects: 'p' and 16 hexadecimal digits of HMAC-SHA256.

    >>> len(patient_name(b"salt", "007")), patient_name(b"salt", "007") == patient_name(b"pepper", "007")
    (17, False)
    """
    return "p" + hmac.digest(salt, f"patient {patient}".encode(), "sha256").hex()[:16]


def shifted_date(date: str, patient: str, salt: bytes) -> str:
    """A date YYYYMMDD, 1–365 days earlier, by a number of days that depends on salt and patient; '' if it is not valid.

    >>> shifted_date("20200102", "p1", b"salt") < "20200102", shifted_date("unknown", "p1", b"salt")
    (True, '')
    """
    digest = hmac.digest(salt, f"date {patient}".encode(), "sha256")
    days = 1 + int.from_bytes(digest[:8]) % _MOST_SHIFT
    try:
        return (datetime.strptime(date.strip(), "%Y%m%d") - timedelta(days)).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def _cut_pixels(image: Dataset) -> None:
    """Remove what follows the last pixel in the pixel data; a zero makes their number of bytes even."""
    samples = image.Rows * image.Columns * image.get("SamplesPerPixel", 1)
    size = samples * image.BitsAllocated // 8
    image.PixelData = image.PixelData[:size] + bytes(size % 2)


def _rebuilt(item: Dataset, sequence: str) -> Dataset:
    """An item of a sequence with only the attributes that ``KEPT_WITHIN`` names; empty where it has none of them."""
    made = Dataset()
    for keyword in KEPT_WITHIN[sequence]:
        if keyword in item:
            made[keyword] = item[keyword]
    return made


def fill_required(image: Dataset) -> None:
    """Add missing attributes, empty, that objects made from the image copy from it."""
    keywords = ("PatientID", "PatientName", *EMPTIED)
    for keyword in (*keywords, "PositionReferenceIndicator") if "FrameOfReferenceUID" in image else keywords:
        if keyword not in image:
            setattr(image, keyword, "")


def empty_unknown(image: Dataset) -> list[str]:
    """Empty dates, time and sex that are not valid DICOM values, since objects made from the image cannot copy them.

    Returns their keywords.
    """
    keywords = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
    emptied = [keyword for keyword in keywords if keyword in image and not _is_known(keyword, image[keyword].value)]
    for keyword in emptied:
        setattr(image, keyword, "")
    return emptied


def _is_known(keyword: str, value: Any) -> bool:
    if value in (None, ""):
        return True
    if keyword == "PatientSex":
        return value in ("M", "F", "O")
    try:
        (TM if keyword == "StudyTime" else DA)(value)
    except (ValueError, TypeError):
        return False
    return True


def uid_within(salt: bytes, uid: str, patient: str) -> UID:
    """The salted identifier of a study or series of a patient."""
    return salted_uid(salt, f"{uid} {patient}")


def salted_uid(salt: bytes, uid: str) -> UID:
    """A UID of the 2.25 kind that depends only on the salt and the given text.

    >>> salted_uid(b"salt", "1.2.3") == salted_uid(b"salt", "1.2.3") != salted_uid(b"pepper", "1.2.3")
    True
    """
    digest = hmac.new(salt, uid.encode(), hashlib.sha256).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}")
