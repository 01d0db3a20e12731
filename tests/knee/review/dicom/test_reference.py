"""Names of patients, studies and dates: the same for all objects of a patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pydicom
import pytest

from knee.review.dicom.identity import patient_name
from knee.review.writer import NotMade

from .conftest import _complaints, _disagreements, _source_values


def test_two_patients_of_many_cases_are_two_patients_and_studies_even_under_one_study(write_series, case_of, export):
    mixed = write_series("CR", 2)  # one study, of two patients by the manifest
    cases = [case_of(path, "R", case=f"c{n}", patient=f"P{n}") for n, path in enumerate(mixed)]
    cases += [case_of(path, "R", case=f"d{n}", patient="P0") for n, path in enumerate(write_series("CR", 3))]
    made = [pydicom.dcmread(path) for path in export.write(*cases).files]
    assert {one.PatientID for one in made} == {patient_name(b"salt", f"P{n}") for n in (0, 1)}
    assert len({one.StudyInstanceUID for one in made}) == 3
    assert len({(one.StudyInstanceUID, one.PatientID) for one in made}) == 3


def test_study_dates_are_empty_or_shifted_alike_for_a_patient(write_source, case_of, export):
    path = write_source("CR", _source_values("CR"))
    later = write_source("CR", _source_values("CR"), StudyDate="20200109")
    cases = [case_of(one, "R", case=f"c{n}") for n, one in enumerate((path, later))]
    assert {pydicom.dcmread(file).StudyDate for file in export.write(*cases).files} == {""}
    shifted = replace(export, shift_dates=True, force=True).write(*cases)
    dates = [{pydicom.dcmread(file).StudyDate for file in shifted.files if f"c{n}_" in file.name} for n in (0, 1)]
    (first,), (second,) = dates
    assert first < "20200102" and date.fromisoformat(second) - date.fromisoformat(first) == timedelta(7)


def test_a_frame_of_a_multi_frame_file_that_is_no_enhanced_mr_has_no_objects_and_says_so(write_series, case_of, export):
    (path,) = write_series("MR", 1)
    image = pydicom.dcmread(path)
    image.PixelData, image.NumberOfFrames = image.PixelData * 2, 2
    image.save_as(path)
    case = case_of(f"{path}#1", "L")
    with pytest.raises(
        NotMade, match="multi-frame file that is no Enhanced MR, of which no objects are made; export as png or nifti"
    ):
        export.write(case)


def _references(dataset: pydicom.Dataset, *, listed: bool = False) -> Iterator[tuple[str, int | None]]:
    """The images that an object refers to, with their frames; ``listed``: in the lists of its series instead."""
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            in_list = element.keyword in ("ReferencedInstanceSequence", "ReferencedSOPSequence")
            in_list &= "SeriesInstanceUID" in dataset
            if "ReferencedSOPInstanceUID" in item and in_list == listed:
                yield str(item.ReferencedSOPInstanceUID), item.get("ReferencedFrameNumber")
            yield from _references(item, listed=listed)


def test_objects_of_the_frames_of_an_enhanced_mr_refer_to_the_frames(write_enhanced, case_of, export):
    path = write_enhanced(3)
    image = pydicom.dcmread(path)
    cases = [case_of(f"{path}#{number}", "L", case=f"c{number}") for number in range(3)]
    kept = replace(export, keep_identity=True)
    exported = kept.write(*cases)
    files = {file.stem: file for file in exported.files}
    assert exported.left_out == ()
    assert len(files) == 2 * (3 + 3)
    for number in range(3):
        capture = pydicom.dcmread(files[f"c{number}_teacher_capture"])
        assert list(_references(capture)) == [(image.SOPInstanceUID, number + 1)]
        assert capture.StudyInstanceUID == image.StudyInstanceUID
    mask = pydicom.dcmread(files["c0_teacher_mask"])
    frames = [
        frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in mask.PerFrameFunctionalGroupsSequence
    ]
    positions = [
        frame.PlanePositionSequence[0].ImagePositionPatient[0] for frame in mask.PerFrameFunctionalGroupsSequence
    ]
    assert {one.ReferencedSOPInstanceUID for one in frames} == {image.SOPInstanceUID}
    assert [(one.ReferencedFrameNumber, place) for one, place in zip(frames, positions, strict=True)] == [
        (1, 40),
        (2, 37),
        (3, 34),
    ]
    report = pydicom.dcmread(files["c0_teacher_report"])
    assert {(image.SOPInstanceUID, number) for number in (1, 2, 3)} <= set(_references(report))
    for made in (mask, report):
        assert list(_references(made, listed=True)).count((image.SOPInstanceUID, None)) == 1, "named once in the lists"
    assert {name: found for name, file in files.items() if (found := _complaints(file))} == {}


def test_the_de_identified_copy_of_a_frame_is_an_image_of_its_own(write_enhanced, case_of, export):
    path = write_enhanced(2)
    cases = [case_of(f"{path}#{number}", "L", case=f"c{number}") for number in range(2)]
    exported = export.write(*cases)
    assert exported.left_out == () and len(exported.files) == 2 + 4 + 2 * 3
    sources = [pydicom.dcmread(export.folder / f"c{number}_source.dcm") for number in range(2)]
    assert [one.InstanceNumber for one in sources] == [1, 2] and len({one.SOPInstanceUID for one in sources}) == 2
    assert {one.SOPClassUID.name for one in sources} == {"MR Image Storage"}
    assert [one.ImagePositionPatient[0] for one in sources] == [40, 37]
    assert all(np.array_equal(one.pixel_array, _source_values("MR")) for one in sources)
    capture = pydicom.dcmread(export.folder / "c1_teacher_capture.dcm")
    assert list(_references(capture)) == [(sources[1].SOPInstanceUID, None)]
    assert {file.name: found for file in exported.files if (found := _complaints(file))} == {}
    assert _disagreements(exported.files) == []


@pytest.mark.slow
def test_knees_of_both_sides_in_one_series_agree_though_their_files_call_the_side_that_of_the_series(
    write_series, case_of, export
):
    paths = write_series("CR", 2)
    right, left = (pydicom.dcmread(path) for path in paths)
    left.Laterality = "L"
    left.save_as(paths[1], enforce_file_format=True)
    assert right.SeriesInstanceUID == left.SeriesInstanceUID and right.Laterality == "R"
    exported = export.write(*(case_of(path, side, case=f"c{side}") for path, side in zip(paths, "RL", strict=True)))
    assert {file.name: found for file in exported.files if (found := _complaints(file))} == {}
    assert _disagreements(exported.files) == []
    sides = {path.name: pydicom.dcmread(path).get("ImageLaterality") for path in exported.files}
    assert sides["cR_teacher_capture.dcm"] == sides["cR_source.dcm"] == "R"
    assert sides["cL_teacher_capture.dcm"] == sides["cL_source.dcm"] == "L"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CR", "DX", "MR"])
def test_the_copy_of_an_image_without_attributes_that_may_be_empty_has_them(write_source, case_of, export, kind):
    absent = {
        "CR": ("BodyPartExamined", "ViewPosition"),
        "DX": ("DetectorType", "AcquisitionContextSequence", "AnatomicRegionSequence"),
        "MR": ("ScanOptions", "RepetitionTime", "EchoTime"),
    }
    path = write_source(kind, _source_values(kind), **dict.fromkeys(absent[kind]))
    assert _complaints(path), "the source lacks them"
    exported = export.write(case_of(path, "L" if kind == "MR" else "R"))
    assert {file.name: found for file in exported.files if (found := _complaints(file))} == {}


@pytest.mark.slow
def test_the_copy_of_a_negative_has_the_presentation_that_belongs_to_it(write_source, case_of, export):
    """Some devices write IDENTITY with MONOCHROME1."""
    path = write_source("DX", _source_values("DX"), PhotometricInterpretation="MONOCHROME1")
    assert pydicom.dcmread(path).PresentationLUTShape == "IDENTITY" and _complaints(path)
    exported = export.write(case_of(path, "R"))
    assert {file.name: found for file in exported.files if (found := _complaints(file))} == {}
