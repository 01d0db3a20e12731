"""Readers' reports become verdicts: by the image that they refer to, and with sentences where they cannot."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from knee.errors import Faults, UserError
from knee.review.dicom.readings import find_reports, read_report, targets
from knee.review.verdicts import import_verdicts
from knee.review.verdicts_file import Expected

from .conftest import _named, _source_values


@pytest.fixture
def exported(write_source, case_of, export):
    """Two cases: their files, and what was exported of each."""
    paths = [write_source("DX", _source_values("DX")) for _ in range(2)]
    files = [_named(export.write(case_of(path, "R", case=f"c{n}"))) for n, path in enumerate(paths)]
    return paths, files


@pytest.fixture
def known(exported, run):
    paths, _ = exported
    images = [(f"c{n}", path) for n, path in enumerate(paths)]
    return targets(images, b"salt", model_hash=run.model_hash, threshold=run.threshold)


@pytest.fixture
def expected(run):
    return Expected(run.run, run.model_hash, 5, {"c0", "c1"})


@pytest.fixture
def report(tmp_path):
    """``report(image, *texts, reader=…)``: what a reader saved in a viewer, and its file."""
    folder = tmp_path / "reports"
    folder.mkdir()

    def make(image, *texts: str, reader: str = "Smith^Jane^^Dr"):
        observer = hd.sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name=reader),
        )
        labels = [
            hd.sr.QualitativeEvaluation(
                hd.sr.CodedConcept("121071", "DCM", "Finding"), hd.sr.CodedConcept("FREETEXT", "99VIEWER", text)
            )
            for text in texts
        ]
        source = hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            hd.sr.TrackingIdentifier(generate_uid(), "Tools@0.1:Length"),
            qualitative_evaluations=labels,
            source_images=[source],
        )
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_person_context=observer),
            procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
            imaging_measurements=[group],
            title=codes.DCM.ImagingMeasurementReport,
        )
        made = hd.sr.ComprehensiveSR([image], content[0], generate_uid(), 1, generate_uid(), 1, "Viewer")
        path = folder / f"{len(list(folder.iterdir()))}.dcm"
        made.save_as(path, enforce_file_format=True)
        return path

    return make


def _read(path, expected, known):
    faults: list[str] = []
    return read_report(path, expected, faults, known=known), faults


def test_a_grade_is_found_by_the_original_the_copy_and_the_capture(exported, known, expected, report):
    paths, files = exported
    images = [pydicom.dcmread(path) for path in (paths[0], files[1]["source"], files[1]["teacher_capture"])]
    read = [_read(report(image, "KL 2", "agree", "osteophyte"), expected, known) for image in images]
    assert [faults for _, faults in read] == [[], [], []]
    verdicts = [found[0] for found, _ in read]
    assert [verdict.case for verdict in verdicts] == ["c0", "c1", "c1"]
    assert {(v.reviewer, v.blind_grade, v.final_grade, v.verdict) for v in verdicts} == {
        ("Dr Jane Smith", None, 2, "agree")
    }
    assert ["model's output in view" in verdict.comment for verdict in verdicts] == [False, False, True]
    assert all(
        verdict.comment.startswith("DICOM report ") and verdict.comment.endswith("; osteophyte") for verdict in verdicts
    )


@pytest.mark.parametrize(
    ("texts", "reader", "message"),
    [
        (("KL 7",), "A^B", "grade 7 is not 0–4"),
        (("KL 2", "grade: 3"), "A^B", r"several verdicts on one case \(2, 3\)"),
        (("osteophyte",), "A^B", "neither a grade"),
    ],
)
def test_a_report_that_is_not_understood_says_why(exported, known, expected, report, texts, reader, message):
    found, (fault,) = _read(report(pydicom.dcmread(exported[0][0]), *texts, reader=reader), expected, known)
    assert found == []
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fault)


def test_reports_without_reference_reader_or_of_another_model(exported, known, expected, report, write_source, run):
    image = pydicom.dcmread(exported[0][0])
    foreign = report(pydicom.dcmread(write_source("DX", _source_values("DX"))), "KL 2")
    assert "refers to no case of this run and model" in _read(foreign, expected, known)[1][0]
    other = targets([("c0", exported[0][0])], b"salt", model_hash="f" * 16, threshold=run.threshold)
    capture = report(pydicom.dcmread(exported[1][0]["teacher_capture"]), "KL 2")
    assert "of this run and model" in _read(capture, expected, other)[1][0]
    path = report(image, "KL 2")
    bare = pydicom.dcmread(path)
    bare.ContentSequence = [item for item in bare.ContentSequence if item.ValueType not in ("PNAME", "CONTAINER")]
    bare.save_as(path)
    faults = _read(path, expected, known)[1]
    assert ["names no reader" in fault for fault in faults] == [True, False]
    assert "refers to no image" in faults[1]


def test_spellings_of_a_reader_are_asked_about_and_a_second_import_adds_nothing(
    exported, known, expected, report, table
):
    images = [pydicom.dcmread(path) for path in exported[0]]
    report(images[0], "KL 2")
    report(images[1], "KL 3", reader="smith^jane")
    (folder,) = {path.parent for path in (report(images[0], "KL 2", reader="Other^One"),)}
    read = partial(read_report, known=known)
    paths = find_reports(folder)
    with pytest.raises(Faults, match=r"'jane smith' may be 'Dr Jane Smith': if they are one person, add --reader"):
        import_verdicts(paths, table, expected=expected, read=read)
    readers = {"jane smith": "Dr Jane Smith"}
    done = import_verdicts(paths, table, expected=expected, read=read, readers=readers)
    assert (done.added, done.known) == (3, 0)
    again = import_verdicts(paths, table, expected=expected, read=read, readers=readers)
    assert (again.added, again.known) == (0, 3)


def test_a_viewer_that_names_no_reader_asks_for_the_name(exported, known, expected, report, table):
    """OHIF writes unknown^unknown as the observer of every report."""
    paths = [report(pydicom.dcmread(exported[0][0]), "KL 2", reader="unknown^unknown")]
    read = partial(read_report, known=known)
    with pytest.raises(Faults, match=r"is nobody's name.* --reader 'unknown unknown=NAME'"):
        import_verdicts(paths, table, expected=expected, read=read)
    assert not table.exists()
    named = {"unknown unknown": "R1"}
    assert import_verdicts(paths, table, expected=expected, read=read, readers=named).added == 1
    assert "R1" in table.read_text()


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("keyword", ["LongCodeValue", "CodeValue"])
def test_free_text_may_be_a_code_too_long_for_its_attribute(exported, known, expected, report, keyword):
    """OHIF writes CORNERSTONEFREETEXT as a CodeValue, which may have 16 letters; others write a LongCodeValue."""
    path = report(pydicom.dcmread(exported[0][0]), "KL 3")
    read = pydicom.dcmread(path)
    changed = 0
    for item in _items(read):
        for code in item.get("ConceptCodeSequence") or ():
            if code.get("CodeValue") == "FREETEXT":
                del code.CodeValue
                setattr(code, keyword, "CORNERSTONEFREETEXT")
                changed += 1
    read.save_as(path)
    (verdict,), faults = _read(path, expected, known)
    assert (changed, verdict.final_grade, faults) == (1, 3, [])


def test_our_own_reports_are_not_readings(exported, export, tmp_path):
    with pytest.raises(UserError, match="no structured report but 4 of our own"):
        find_reports(export.folder)
    with pytest.raises(UserError, match="is not a folder"):
        find_reports(tmp_path / "missing")


def test_the_frames_of_an_enhanced_mr_are_cases_of_their_own(write_enhanced, expected, report, run):
    path = write_enhanced(3)
    image = pydicom.dcmread(path)
    cases = [(f"c{number}", Path(f"{path}#{number}")) for number in range(3)]
    known = targets(cases, b"salt", model_hash=run.model_hash, threshold=run.threshold)
    read = pydicom.dcmread(report(image, "KL 2"))
    for frame in (1, 3):
        for item in _items(read):
            for one in item.get("ReferencedSOPSequence") or ():
                one.ReferencedFrameNumber = frame
        read.save_as(path.with_name("read.dcm"))
        found, faults = _read(path.with_name("read.dcm"), expected, known)
        assert faults == [] and [verdict.case for verdict in found] == [f"c{frame - 1}"]


def _items(dataset):
    for item in dataset.get("ContentSequence") or ():
        yield item
        yield from _items(item)
