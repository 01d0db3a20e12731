"""What of a folder is an image: DICOM objects that are not are left out and listed."""

import logging

import pydicom
import pytest

from knee.intake.headers import read_header
from knee.intake.scan import image_files

NOT_IMAGES = {
    "Segmentation": pydicom.uid.SegmentationStorage,
    "Basic Text SR": pydicom.uid.BasicTextSRStorage,
    "Grayscale Softcopy Presentation State": pydicom.uid.GrayscaleSoftcopyPresentationStateStorage,
    "Key Object Selection Document": pydicom.uid.KeyObjectSelectionDocumentStorage,
    "Encapsulated PDF": pydicom.uid.EncapsulatedPDFStorage,
    "X-Ray Radiation Dose SR": pydicom.uid.XRayRadiationDoseSRStorage,
}
IMAGES = [
    pydicom.uid.ComputedRadiographyImageStorage,
    pydicom.uid.DigitalXRayImageStorageForPresentation,
    pydicom.uid.DigitalXRayImageStorageForProcessing,
    pydicom.uid.MRImageStorage,
    pydicom.uid.EnhancedMRImageStorage,
    pydicom.uid.CTImageStorage,
    pydicom.uid.SecondaryCaptureImageStorage,
    "1.2.826.0.1.3680043.8.498.1",
]


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_objects_without_a_knee_are_left_out_and_listed(study, kind, caplog):
    study.draw_dicom("1/a.dcm", PatientID="A")
    study.draw_dicom("3/b.dcm", PatientID="B")
    study.draw_dicom("3/IM2", kind=NOT_IMAGES[kind], PatientID="B")
    assert study.grades() == {"1/a.dcm": 1, "3/b.dcm": 3}
    assert f"1 DICOM file left out, not images of a knee ({kind}: 1 ('3/IM2' first))" in study.notes()
    with caplog.at_level(logging.WARNING):
        assert image_files(study.images) == ["1/a.dcm", "3/b.dcm"]
    assert f"{kind}: 1" in caplog.text


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_all_classes_are_found(study, kind):
    study.draw_dicom("a.dcm", kind=kind)
    assert image_files(study.images) == ["a.dcm"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, True),
        ({"ImageType": ["ORIGINAL", "SECONDARY"], "ConversionType": "DF"}, True),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, False),
        ({"ConversionType": "SD"}, False),
    ],
)
def test_a_digitised_film_is_an_image_and_a_capture_of_a_result_is_not(study, fields, found):
    study.draw_dicom("a.dcm", kind=pydicom.uid.SecondaryCaptureImageStorage, **fields)
    assert bool(image_files(study.images)) == found


def test_a_folder_of_nothing_else_says_what_it_holds(study):
    study.draw_dicom("seg.dcm", kind=pydicom.uid.SegmentationStorage)
    assert "contains no images" in study.refusal()
    assert "Segmentation: 1 ('seg.dcm' first)" in study.refusal()


def test_headers_that_say_nothing_or_are_damaged(study):
    path = study.draw_dicom("a.dcm", StudyDate="", PatientID="7", Laterality="L")
    header = read_header(path)
    assert header is not None
    assert (header.patient, header.side, header.not_an_image, header.date, header.study) == ("7", "L", "", "", "")
    data = path.read_bytes()
    for kept in (0, 140, 200):
        path.write_bytes(data[:kept])
        read_header(path)
    (study.images / "b.dcm").write_bytes(b"x")
    assert read_header(study.images / "b.dcm") is None
