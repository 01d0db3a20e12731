"""DICOM objects: outlines, codes, marks and anatomy are valid and at the right pixels."""

from __future__ import annotations

from dataclasses import replace

import pydicom
import pytest

from .conftest import SHAPES, _complaints, _named, _source_values


@pytest.mark.slow
@pytest.mark.parametrize("keep_identity", [False, True])
@pytest.mark.parametrize("kind", ["MR", "DX", "CR"])
def test_dciodvfy_finds_no_error(write_source, case_of, export, kind, keep_identity):
    path = write_source(kind, _source_values(kind))
    exported = replace(export, keep_identity=keep_identity).write(case_of(path, "R" if kind != "MR" else "L"))
    assert _complaints(path) == [], "the made-up source itself is at fault"
    assert {file.name: _complaints(file) for file in exported.files} == {file.name: [] for file in exported.files}


def test_marks_and_what_is_carried_over(write_source, case_of, export):
    path = write_source("MR", _source_values("MR"))
    files = _named(export.write(case_of(path, "L")))
    for name, file in files.items():
        made = pydicom.dcmread(file)
        assert made.Modality == "SR" or made.BodyPartExamined == "KNEE"
        if name == "source":
            continue
        assert "not for diagnostic use" in made.SeriesDescription
        assert made.ContributingEquipmentSequence[0].SoftwareVersions == "1.0"
        assert "3f9ac2d17be04410" in made.ContributingEquipmentSequence[0].ManufacturerModelName
    assert pydicom.dcmread(files["teacher_map"]).ContentQualification == "RESEARCH"
    capture = pydicom.dcmread(files["teacher_capture"])
    assert (capture.Laterality, list(capture.PatientOrientation)) == ("L", ["P", "F"])
    region = pydicom.dcmread(files["teacher_mask"]).SegmentSequence[0].AnatomicRegionSequence[0]
    assert region.AnatomicRegionModifierSequence[0].CodeMeaning == "Left"
    shared = pydicom.dcmread(files["teacher_map"]).SharedFunctionalGroupsSequence[0]
    assert shared.FrameAnatomySequence[0].FrameLaterality == "L"


def test_the_spacing_of_a_projection_stays_that_of_the_detector(write_source, case_of, export):
    path = write_source("CR", _source_values("CR"))
    capture = pydicom.dcmread(_named(export.write(case_of(path, "R")))["teacher_capture"])
    factor = -(-512 // SHAPES["CR"][1])
    assert "PixelSpacing" not in capture and capture.ImagerPixelSpacing == pytest.approx([0.2 / factor] * 2)
    calibrated = {"PixelSpacing": [0.18, 0.18], "PixelSpacingCalibrationType": "GEOMETRY"}
    path = write_source("CR", _source_values("CR"), **calibrated)
    capture = pydicom.dcmread(_named(export.write(case_of(path, "R", case="c2")))["teacher_capture"])
    assert capture.PixelSpacing == pytest.approx([0.18 / factor] * 2)
    assert capture.PixelSpacingCalibrationType == "GEOMETRY"
