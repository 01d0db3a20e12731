from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import DataElement
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from knee.errors import UserError
from knee.images.original import read_original
from knee.images.read import prepare, read_pixels
from knee.review.dicom.export import DicomExport
from knee.review.dicom.identity import deidentified
from knee.review.writer import Exported, NotMade

SIZE = 128
SHAPES = {"MR": (200, 160), "DX": (300, 420), "CR": (300, 420)}


class _Export(DicomExport):
    """Reads the original of a case, as the export of many does."""

    def write(self, case) -> Exported:
        return self.add(case, read_original(case.source))


@pytest.fixture
def export(tmp_path, run):
    return _Export(tmp_path / "dicom", run, "1.0", b"salt")


def _source_values(kind: str) -> np.ndarray:
    height, width = SHAPES[kind]
    y, x = np.mgrid[0:height, 0:width]
    return (800 + 4 * x + 3 * y).astype(np.uint16)


@pytest.fixture
def case_of(make_case):
    """``case_of(path, side)``: a case whose evidence is one cell of the grid, row 4 and column 11 of 16."""

    def make(path: Path, side: str, **changes: object):
        image, geometry = prepare(read_pixels(path).values, SIZE, mirror=side == "L")
        evidence = np.zeros((16, 16), np.float32)
        evidence[4, 11] = 2.0
        case = make_case(1)
        views = {name: replace(getattr(case, name), class_map=evidence) for name in ("student", "teacher")}
        values = {"image": image, "geometry": geometry, "source": path, "side": side, "cartilage": None} | views
        return make_case(1, **(values | changes))

    return make


def _expected_place(kind: str, side: str) -> np.ndarray:
    """Where the evidence lies on the original pixels (pixel centres are whole numbers), worked out by hand."""
    height, width = SHAPES[kind]
    square = max(height, width)
    row, column = np.array([4.5, 11.5]) / 16 * square
    if side == "L":
        column = square - column
    return np.array([row - (square - height) / 2, column - (square - width) / 2]) - 0.5


def _centroid(weights: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(weights.shape)
    return np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()


def _named(exported: Exported) -> dict[str, Path]:
    return {path.stem.split("_", 1)[1]: path for path in exported.files}


def _complaints(path: Path) -> list[str]:
    if not shutil.which("dciodvfy"):
        pytest.skip("DICOM objects are checked by dciodvfy: apt-get install dicom3tools")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("side", ["L", "R"])
def test_the_map_of_an_mr_slice_is_on_the_right_pixels(write_source, case_of, export, side):
    path = write_source("MR", _source_values("MR"), Laterality=side)
    files = _named(export.write(case_of(path, side)))
    assert sorted(files) == sorted(
        ["source", *(f"{network}_{kind}" for network in ("student", "teacher") for kind in ("capture", "map", "mask"))]
    )
    place = _expected_place("MR", side)
    x = pydicom.dcmread(files["teacher_map"]).pixel_array.squeeze()
    assert x.shape == SHAPES["MR"] and x.dtype == np.float32 and 0.99 < x.max() <= 1
    assert _centroid(x) == pytest.approx(place, abs=1)
    mask = hd.seg.segread(files["teacher_mask"]).pixel_array.squeeze()
    assert np.array_equal(mask > 0, x > 0.4)
    capture = pydicom.dcmread(files["teacher_capture"]).pixel_array
    factor = -(-512 // SHAPES["MR"][1])
    picture = capture[: SHAPES["MR"][0] * factor].astype(float)
    assert (_centroid(np.ptp(picture, axis=2)) + 0.5) / factor - 0.5 == pytest.approx(place, abs=1)


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
    (grade,) = group.get_qualitative_evaluations()
    predicted = case_of(path, side).teacher.grade
    assert grade.value.value == f"kl-{predicted}"


def test_names_of_grades_are_one_value_each_whatever_their_letters(write_source, case_of, export, run):
    grade_set = replace(run.grade_set, name="k\\l", title="", names=("a\\b\tc",) * 5)
    odd = replace(export, run=replace(run, grade_set=grade_set))
    files = _named(odd.write(case_of(write_source("DX", _source_values("DX")), "R")))
    (group,) = hd.sr.srread(files["teacher_report"]).content.get_planar_roi_measurement_groups()
    (grade,) = group.get_qualitative_evaluations()
    assert (grade.name.value, grade.name.meaning) == ("k/l", "k/l")
    assert grade.value.meaning[1:] == " a/b c" and grade.value.value[:4] == "k/l-"


@pytest.mark.slow
@pytest.mark.parametrize("keep_identity", [False, True])
@pytest.mark.parametrize("kind", ["MR", "DX", "CR"])
def test_dciodvfy_finds_no_error(write_source, case_of, export, kind, keep_identity):
    path = write_source(kind, _source_values(kind))
    exported = replace(export, keep_identity=keep_identity).write(case_of(path, "R" if kind != "MR" else "L"))
    assert _complaints(path) == [], "the made-up source itself is at fault"
    assert {file.name: _complaints(file) for file in exported.files} == {file.name: [] for file in exported.files}


def test_a_picture_that_never_was_dicom_gets_a_capture(tmp_path, case_of, export):
    import cv2

    cv2.imwrite(str(tmp_path / "knee.png"), (_source_values("MR") // 8).astype(np.uint8))
    exported = export.write(case_of(tmp_path / "knee.png", "R"))
    files = _named(exported)
    assert sorted(files) == ["student_capture", "teacher_capture"]
    capture = pydicom.dcmread(files["teacher_capture"])
    assert (capture.PatientID, capture.PatientName) == ("000000000001", "000000000001^")
    assert capture.Laterality == "R" and capture.BurnedInAnnotation == "YES"
    assert _complaints(files["teacher_capture"]) == []


@pytest.mark.parametrize("kind", ["MR", "DX"])
def test_nothing_names_the_patient_unless_asked_to(write_source, case_of, export, kind):
    path = write_source(kind, _source_values(kind))
    source = pydicom.dcmread(path)
    secrets = ["Doe", "SECRET17", "ACC9", "House", "Hospital", "19500101", "20200102", source.StudyInstanceUID]
    secrets += [source.SOPInstanceUID, source.SeriesInstanceUID, str(path)]
    exported = export.write(case_of(path, "L"))
    for file in exported.files:
        content = file.read_bytes()
        assert [secret for secret in secrets if str(secret).encode() in content] == []
        assert pydicom.dcmread(file).PatientIdentityRemoved == "YES"
    kept = replace(export, keep_identity=True, force=True).write(case_of(path, "L"))
    assert "source" not in _named(kept)
    for file in kept.files:
        made = pydicom.dcmread(file)
        assert (made.PatientID, made.StudyInstanceUID) == ("SECRET17", source.StudyInstanceUID)
        assert source.SOPInstanceUID.encode() in file.read_bytes()


@pytest.mark.parametrize("syntax", [RLELossless, ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_the_copy_of_the_source_has_its_pixels_whatever_their_encoding(write_source, case_of, export, syntax):
    path = write_source("MR", _source_values("MR"))
    dataset = pydicom.dcmread(path)
    if syntax == RLELossless:
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    else:
        swapped = dataset.pixel_array.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
        dataset.PixelData = swapped.tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
            pydicom.dcmwrite(path, dataset, force_encoding=True, **encoding)
    copy = pydicom.dcmread(_named(export.write(case_of(path, "L")))["source"])
    assert copy.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(copy.pixel_array, _source_values("MR"))


@pytest.mark.parametrize(("bits", "vr"), [(8, "OW"), (8, "OB"), (16, "OW"), (32, "OW")])
def test_the_copy_of_a_big_endian_source_has_its_pixels_at_any_width(write_source, bits, vr):
    path = write_source("CR", _source_values("CR"))
    dataset = pydicom.dcmread(path)
    values = np.arange(dataset.Rows * dataset.Columns).reshape(dataset.Rows, dataset.Columns) % 251
    values = values << (bits - 8)
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    encoded = values.astype(f">u{bits // 8}").tobytes()
    if (bits, vr) == (8, "OW"):
        encoded = np.frombuffer(encoded, "<u2").astype(">u2").tobytes()
    dataset["PixelData"] = DataElement("PixelData", vr, encoded)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, force_encoding=True, implicit_vr=False, little_endian=False)
    source = pydicom.dcmread(path)
    assert np.array_equal(source.pixel_array, values)
    content = io.BytesIO()
    deidentified(source, "c1", b"salt").save_as(content, enforce_file_format=True)
    content.seek(0)
    assert np.array_equal(pydicom.dcmread(content).pixel_array, values)


def test_marks_and_what_is_carried_over(write_source, case_of, export):
    path = write_source("MR", _source_values("MR"))
    files = _named(export.write(case_of(path, "L")))
    for name, file in files.items():
        made = pydicom.dcmread(file)
        assert made.BodyPartExamined == "KNEE"
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


def test_a_study_has_one_new_series_for_each_kind_of_object(write_source, case_of, export):
    first = pydicom.dcmread(write_source("MR", _source_values("MR")))
    study = {"StudyInstanceUID": first.StudyInstanceUID}
    paths = [write_source("MR", _source_values("MR"), **study) for _ in range(2)]
    written = [export.write(case_of(path, "L", case=f"c{n}")) for n, path in enumerate(paths)]
    made = [pydicom.dcmread(path) for exported in written for path in exported.files if "source" not in path.name]
    series = {(one.SeriesInstanceUID, one.SOPClassUID) for one in made}
    assert len(series) == 3
    captures = [one for one in made if one.SOPClassUID.name == "Secondary Capture Image Storage"]
    assert [one.InstanceNumber for one in captures] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["DX", "CR"])
def test_monochrome1_is_inverted_exactly_once(write_source, case_of, export, kind):
    values = _source_values(kind)
    bright = write_source(kind, values)
    dark = write_source(kind, 4095 - values, PhotometricInterpretation="MONOCHROME1")
    pictures = []
    for number, path in enumerate([bright, dark]):
        files = _named(export.write(case_of(path, "R", case=f"c{number}")))
        pictures.append(pydicom.dcmread(files["teacher_capture"]).pixel_array[: SHAPES[kind][0]].astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2
    assert pictures[0][-1, -1].mean() > pictures[0][0, 0].mean() + 100


def test_without_spacing_or_geometry_there_is_a_capture_and_a_sentence(write_source, case_of, export):
    exported = export.write(case_of(write_source("MR", _source_values("MR"), PixelSpacing=None), "L"))
    assert sorted(_named(exported)) == ["source", "student_capture", "teacher_capture"]
    told = "case 000000000001: the source has no PixelSpacing: no map and no segmentation"
    assert exported.left_out == (told,), "once, not for each network"


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


def test_text_within_the_pixels_is_warned_of_and_names_may_be_in_any_script(write_source, case_of, export, run):
    path = write_source("DX", _source_values("DX"), BurnedInAnnotation="YES")
    named = replace(export, run=replace(run, run="膝 durchläuft " + "x" * 80))
    exported = named.write(case_of(path, "R"))
    assert "text burned into the pixels" in exported.left_out[0]
    capture = pydicom.dcmread(_named(exported)["teacher_capture"])
    assert "3f9ac2d17be04410, run 膝" in capture.ContributingEquipmentSequence[0].ManufacturerModelName


def test_existing_objects_stay_and_bad_sources_are_named(tmp_path, write_source, case_of, export):
    path = write_source("CR", _source_values("CR"))
    case = case_of(path, "R")
    export.write(case)
    with pytest.raises(UserError, match="exists already"):
        export.write(case)
    many = write_source("CR", _source_values("CR"), NumberOfFrames=2)
    with pytest.raises(UserError, match="2 frames"):
        export.write(replace(case, source=replace(case.source, path=many)))
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"cut\.dcm"):
        export.write(replace(case, source=replace(case.source, path=tmp_path / "cut.dcm")))
    nameless = write_source("CR", _source_values("CR"), StudyInstanceUID=None)
    with pytest.raises(NotMade, match="has no StudyInstanceUID"):
        export.write(replace(case, source=replace(case.source, path=nameless), case="c3"))
    with pytest.raises(UserError, match="image file is not known"):
        export.write(replace(case, source=None))


def test_an_orientation_between_two_axes_is_kept_and_a_wrong_one_is_not(write_source, case_of, export):
    for number, (recorded, expected) in enumerate(
        ((["PR", "FR"], ["PR", "FR"]), (["AL", "F"], ["AL", "F"]), (["LEFT", "FOOT"], None), ("PR", None))
    ):
        path = write_source("DX", _source_values("DX"), PatientOrientation=recorded)
        exported = export.write(case_of(path, "R", case=f"c{number}"))
        assert exported.left_out == () and len(exported.files) == 5
        made = pydicom.dcmread(_named(exported)["teacher_capture"]).PatientOrientation
        assert (list(made) if made else None) == expected, recorded


def test_a_radiograph_with_an_orientation_in_space_alone_has_a_report(write_source, case_of, export):
    space = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "PatientOrientation": None}
    exported = export.write(case_of(write_source("CR", _source_values("CR"), **space), "R"))
    assert exported.left_out == () and "teacher_report" in _named(exported)


def test_values_that_the_standard_does_not_know_are_left_empty_where_the_patient_is_named(
    write_source, case_of, export
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {"PatientSex": "U", "PatientBirthDate": "unknown", "StudyTime": "noon"}
        path = write_source("MR", _source_values("MR"), **odd)
    exported = replace(export, keep_identity=True).write(case_of(path, "L"))
    assert len(exported.files) == 6
    told = "PatientBirthDate, PatientSex, StudyTime: the value in its file is not valid DICOM, and is left empty"
    assert exported.left_out == (f"case 000000000001: {told}",)
    for file in exported.files:
        made = pydicom.dcmread(file)
        assert (made.PatientID, made.PatientSex, made.PatientBirthDate) == ("SECRET17", "", "")
        assert made.StudyDate == "20200102"


def _secretive(item: pydicom.Dataset) -> pydicom.Dataset:
    """An item with a name in a private element, and in a sequence within."""
    item.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "Doe")
    item.AnatomicRegionModifierSequence = [pydicom.Dataset()]
    item.AnatomicRegionModifierSequence[0].CodeMeaning = "of Jane Doe"
    return item


def _lookup(**more: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTExplanation = [4096, 0, 16], "by Doe"
    item.add_new("LUTData", "OW", np.arange(0, 8192, 2, dtype="<u2").tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return _secretive(item)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_nothing_within_the_kept_sequences_names_the_patient(write_source, case_of, export, syntax):
    code, empty = pydicom.Dataset(), pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "72696002", "SCT", "Knee"
    code.CodingSchemeVersion, code.MappingResourceName = "1.0", "Doe"
    path = write_source(
        "DX",
        _source_values("DX"),
        AnatomicRegionSequence=[_secretive(code)],
        ViewCodeSequence=[_secretive(empty)],
        VOILUTSequence=[_lookup()],
        ModalityLUTSequence=[_lookup(ModalityLUTType="Doe's")],
        RescaleSlope=None,
        RescaleIntercept=None,
        RescaleType=None,
    )
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=True, force_encoding=True)
    exported = export.write(case_of(path, "R"))
    assert exported.left_out == ()
    assert [file for file in exported.files if b"Doe" in file.read_bytes()] == []
    copy = pydicom.dcmread(_named(exported)["source"])
    assert "ViewCodeSequence" not in copy, "nothing of it was left"
    (region,) = copy.AnatomicRegionSequence
    assert [element.keyword for element in region] == [
        "CodeValue",
        "CodingSchemeDesignator",
        "CodingSchemeVersion",
        "CodeMeaning",
    ]
    (lookup,) = copy.ModalityLUTSequence
    assert [element.keyword for element in lookup] == ["LUTDescriptor", "ModalityLUTType", "LUTData"]
    assert lookup.ModalityLUTType == "US"
    assert np.array_equal(read_pixels(_named(exported)["source"]).values, read_pixels(path).values)
