"""Structured reports: the grade once, outlines at the right pixels, holes, one device."""

from __future__ import annotations

from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest

from knee.images.original import read_original

from .conftest import SHAPES, _expected_place, _named, _source_values


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("kind", ["DX", "CR"])
def test_the_outline_on_a_radiograph_is_around_the_right_pixels(write_source, case_of, export, kind, side):
    laterality = {"DX": "ImageLaterality", "CR": "Laterality"}[kind]
    path = write_source(kind, _source_values(kind), **{laterality: side})
    files = _named(export.write(case_of(path, side)))
    report = hd.sr.srread(files["teacher_report"])
    (group,) = report.content.get_planar_roi_measurement_groups()
    line = group.roi.value
    assert np.array_equal(line[0], line[-1])
    centre = (line.min(0) + line.max(0)) / 2 - 0.5
    assert centre[::-1] == pytest.approx(_expected_place(kind, side), abs=1)
    source = pydicom.dcmread(files["source"])
    assert group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    (whole,) = report.content.get_image_measurement_groups()
    grade, use = whole.get_qualitative_evaluations()
    view = case_of(path, side).teacher
    assert grade.value.value == f"kl-{view.grade}" and use.value.value == "research"
    (probability,) = whole.get_measurements()
    assert probability.value == pytest.approx(view.probabilities[view.grade], abs=1e-4)
    assert group.get_qualitative_evaluations() == [], "the grade is that of the image, given once"


def test_names_of_grades_are_one_value_each_whatever_their_letters(write_source, case_of, export, run):
    grade_set = replace(run.grade_set, name="k\\l", title="", names=("a\\b\tc",) * 5)
    odd = replace(export, run=replace(run, grade_set=grade_set))
    files = _named(odd.write(case_of(write_source("DX", _source_values("DX")), "R")))
    (group,) = hd.sr.srread(files["teacher_report"]).content.get_image_measurement_groups()
    grade, _ = group.get_qualitative_evaluations()
    assert (grade.name.value, grade.name.meaning) == ("k/l", "k/l")
    assert grade.value.meaning[1:] == " a/b c" and grade.value.value[:4] == "k/l-"


def test_a_hole_in_the_attention_is_a_further_outline(write_source, case_of, export):
    case = case_of(write_source("CR", _source_values("CR")), "R")
    ring = np.zeros(SHAPES["CR"], np.float32)
    ring[50:150, 50:150] = 1
    ring[80:120, 80:120] = 0

    class Ring:
        def restore(self, square):
            return ring

    files = _named(export.add(case, replace(read_original(case.source), geometry=Ring())))
    report = hd.sr.srread(files["teacher_report"])
    outline, hole = report.content.get_planar_roi_measurement_groups()
    assert (outline.finding_type.value, hole.finding_type.value) == ("attention", "attention-hole")
    assert hole.roi.value.min(0) == pytest.approx([80, 80], abs=1)
    assert hole.roi.value.max(0) == pytest.approx([120, 120], abs=1)
    assert len(report.content.get_image_measurement_groups()) == 1


def test_a_report_of_a_series_gives_the_grade_of_the_mean_and_refers_to_the_segmentation(
    write_series, case_of, export, make_case
):
    shares = np.array([[0.1, 0.5, 0.4, 0, 0], [0.1, 0.2, 0.7, 0, 0]])
    cases = []
    for number, path in enumerate(write_series("MR", 2)):
        case = case_of(path, "L", case=f"c{number}")
        cases.append(replace(case, teacher=replace(case.teacher, probabilities=shares[number])))
    files = {path.name.split("_", 1)[1]: path for path in export.write(*cases).files}
    report = hd.sr.srread(files["teacher_report.dcm"])
    (whole,) = report.content.get_image_measurement_groups()
    assert whole.get_qualitative_evaluations()[0].value.value == "kl-2"
    assert whole.get_measurements()[0].value == pytest.approx(0.55)
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    mask = pydicom.dcmread(files["teacher_mask.dcm"])
    assert group.finding_type.value == "attention" and mask.SOPInstanceUID in str(report)
    (area,) = group.get_measurements()
    assert area.value == pytest.approx(max(frame.sum() for frame in mask.pixel_array) * 0.4 * 0.4, abs=1e-3)


@pytest.mark.parametrize("kind", ["MR", "CR"])
def test_each_measurement_group_has_a_place_on_an_image_since_a_viewer_fails_without(
    write_series, case_of, export, kind
):
    cases = [case_of(path, "L", case=f"c{number}") for number, path in enumerate(write_series(kind, 2))]
    files = {path.name.split("_", 1)[1]: path for path in export.write(*cases).files}
    report = pydicom.dcmread(files["teacher_report.dcm"])
    (measurements,) = (item for item in report.ContentSequence if _code(item) == "126010")
    groups = [item for item in measurements.ContentSequence if _code(item) == "125007"]
    assert len(groups) == 2
    images = {one.SOPInstanceUID for one in (pydicom.dcmread(path) for path in export.folder.glob("*_source.dcm"))}
    for group in groups:
        places = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        for number in (item for item in group.ContentSequence if item.ValueType == "NUM"):
            places += [item for item in number.ContentSequence if item.ValueType == "SCOORD"]
        assert places
        for item in places:
            assert item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID in images
    (comment,) = (item for item in groups[0].ContentSequence if _code(item) == "121106")
    assert comment.TextValue.startswith(f"kl {cases[0].teacher.grade} ") and "RESEARCH" in comment.TextValue


def test_what_a_report_refers_to_is_in_its_evidence(write_series, case_of, export):
    cases = [case_of(path, "L", case=f"c{n}") for n, path in enumerate(write_series("MR", 3))]
    cases.append(case_of(write_series("DX", 1)[0], "R", case="c9"))
    reports = [pydicom.dcmread(path) for path in export.write(*cases).files if "report" in path.name]
    assert len(reports) == 4
    for report in reports:
        (study,) = report.CurrentRequestedProcedureEvidenceSequence
        evidence = {
            one.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for one in s.ReferencedSOPSequence
        }
        referred = set(_referred(report))
        assert referred and referred <= evidence


def _referred(item):
    yield from (one.ReferencedSOPInstanceUID for one in item.get("ReferencedSOPSequence", ()))
    for inner in item.get("ContentSequence", ()):
        yield from _referred(inner)


def _code(item):
    return item.ConceptNameCodeSequence[0].CodeValue


def test_a_report_names_the_same_device_each_time_and_declares_the_scheme_of_its_codes(write_source, case_of, export):
    devices = []
    for number in range(2):
        case = case_of(write_source("DX", _source_values("DX")), "R", case=f"c{number}")
        report = pydicom.dcmread(_named(export.write(case))["teacher_report"])
        devices += [item.UID for item in report.ContentSequence if item.get("UID")]
        assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99DCMT"
    assert len(devices) == 2 and len(set(devices)) == 1


def test_a_map_that_shows_nothing_has_no_region(write_source, case_of, export, make_case):
    flat = replace(make_case(1).teacher, class_map=np.ones((16, 16), np.float32))
    exported = export.write(case_of(write_source("DX", _source_values("DX")), "R", teacher=flat))
    assert "teacher_report" not in _named(exported) and "student_report" in _named(exported)
    assert exported.left_out == ("case 000000000001: the teacher's map is empty, so there is no region to export",)


def test_a_speck_too_small_for_an_outline_makes_no_report(write_source, case_of, export):
    case = case_of(write_source("CR", _source_values("CR")), "R")
    speck = np.zeros(SHAPES["CR"], np.float32)
    speck[100, 100] = 1

    class Speck:
        def restore(self, square):
            return speck

    original = replace(read_original(case.source), geometry=Speck())
    assert not any("report" in name for name in _named(export.add(case, original)))
