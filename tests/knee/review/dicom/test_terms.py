"""Defined terms: what is kept, what is replaced, and that free text leaves in whatever attribute it is planted."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset, config
from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from knee.review.dicom.identity import KEPT, KEPT_WITHIN, deidentified
from knee.review.dicom.terms import TERMS, limit_to_terms

NAME = "MUELLER ANNA"
_TEXT = ("CS", "LO", "SH", "ST", "LT", "UT", "PN", "DS", "IS")
PLANTED = [keyword for keyword in KEPT if dictionary_VR(keyword) in _TEXT]


def source() -> Dataset:
    image = Dataset()
    image.file_meta = Dataset()  # type: ignore[assignment]
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2", "1.2.1"
    image.Rows, image.Columns, image.SamplesPerPixel, image.BitsAllocated = 3, 5, 1, 8
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = bytes(range(15)) + NAME.encode() + b"\0"
    return image


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keyword", PLANTED)
@pytest.mark.parametrize("place", ["only", "last"])
def test_a_name_in_any_kept_attribute_leaves(keyword: str, place: str) -> None:
    image = source()
    if dictionary_VR(keyword) in ("DS", "IS"):
        image.add_new(keyword, "LO", NAME)  # as a damaged or hostile file may have it
    else:
        setattr(image, keyword, [NAME] if place == "only" else ["PRIMARY", NAME])
    assert NAME not in str(deidentified(image, "case", b"salt"))


@pytest.mark.parametrize("sequence", [name for name in KEPT_WITHIN if name.endswith("LUTSequence") is False])
@pytest.mark.parametrize("keyword", ["CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"])
def test_a_name_in_a_code_leaves(sequence: str, keyword: str) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "72696002", "SCT", "Knee"
    setattr(code, keyword, NAME)
    image = source()
    setattr(image, sequence, [code])
    copy = deidentified(image, "case", b"salt")
    assert NAME not in str(copy)
    if keyword in ("CodeMeaning", "CodingSchemeVersion"):
        assert copy[sequence].value[0].CodeMeaning == "Knee"
    else:
        assert sequence not in copy  # a code without its value or scheme says nothing


def test_pixel_data_end_with_the_last_pixel() -> None:
    copy = deidentified(source(), "case", b"salt")
    assert copy.PixelData == bytes(range(15)) + b"\0"
    image = source()
    image.Columns, image.BitsAllocated = 2, 16
    image.PixelData = np.arange(6, dtype="<u2").tobytes() + NAME.encode()
    assert deidentified(image, "case", b"salt").PixelData == np.arange(6, dtype="<u2").tobytes()


def test_usual_values_stay() -> None:
    image = Dataset()
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    image.Modality, image.BodyPartExamined, image.RescaleType = "MR", "KNEE", "US"
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = ["SE", "IR"], "SK", "FS"
    image.PatientOrientation, image.ViewPosition, image.PatientPosition = ["L", "F"], "AP", "FFS"
    image.PixelSpacing, image.WindowCenter = ["0.25", "0.25"], "40"
    before = str(image)
    limit_to_terms(image)
    assert str(image) == before


def test_other_values_become_the_term_for_unknown_or_go() -> None:
    image = Dataset()
    image.ImageType = ["ANNA", "PRIMARY", "ANNA"]
    image.ScanningSequence, image.RescaleType, image.BodyPartExamined = "ANNA", "ANNA", "ANNA KNEE"
    limit_to_terms(image)
    assert list(image.ImageType) == ["ORIGINAL", "PRIMARY", "OTHER"]
    assert image.ScanningSequence == TERMS["ScanningSequence"].otherwise == "RM"
    assert image.RescaleType == "US"
    assert "BodyPartExamined" not in image


def test_empty_values_stay_empty() -> None:
    image = Dataset()
    image.ScanOptions = image.Laterality = ""
    limit_to_terms(image)
    assert image.ScanOptions == image.Laterality == ""


def test_decimals_that_are_too_long_are_rounded_and_others_stay_as_they_are() -> None:
    image = Dataset()
    with config.disable_value_validation():
        image.ImagePositionPatient = ["13.600000000000001", "-60", "0.1"]
        image.PixelSpacing = ["0.40", "0.40"]
        limit_to_terms(image)
    assert [str(value) for value in image.ImagePositionPatient] == ["13.6000000000000", "-60.0", "0.1"]
    assert [str(value) for value in image.PixelSpacing] == ["0.40", "0.40"]
