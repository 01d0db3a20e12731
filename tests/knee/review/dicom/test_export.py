from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import highdicom as hd
import numpy as np
import pydicom
import pytest

from knee.errors import UserError
from knee.images.original import read_original
from knee.review.dicom.identity import patient_name
from knee.review.writer import NotMade

from .conftest import SHAPES, _centroid, _complaints, _disagreements, _expected_place, _named, _source_values


@pytest.mark.parametrize("side", ["L", "R"])
def test_the_map_of_an_mr_slice_is_on_the_right_pixels(write_source, case_of, export, side):
    path = write_source("MR", _source_values("MR"), Laterality=side)
    files = _named(export.write(case_of(path, side)))
    assert sorted(files) == sorted(
        [
            "source",
            *(
                f"{network}_{kind}"
                for network in ("student", "teacher")
                for kind in ("capture", "map", "mask", "report")
            ),
        ]
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


def test_a_picture_that_never_was_dicom_gets_a_capture(tmp_path, case_of, export):
    import cv2

    cv2.imwrite(str(tmp_path / "knee.png"), (_source_values("MR") // 8).astype(np.uint8))
    exported = export.write(case_of(tmp_path / "knee.png", "R"))
    files = _named(exported)
    assert sorted(files) == ["student_capture", "teacher_capture"]
    capture = pydicom.dcmread(files["teacher_capture"])
    named = patient_name(b"salt", "000000000001")
    assert (capture.PatientID, capture.PatientName) == (named, f"{named}^")
    assert capture.ImageComments == "case 000000000001"
    assert capture.Laterality == "R" and capture.BurnedInAnnotation == "YES"
    assert _complaints(files["teacher_capture"]) == []


def test_a_series_has_one_new_series_for_each_network_and_kind_of_object(write_series, case_of, export):
    paths = write_series("MR", 2)
    exported = export.write(*(case_of(path, "L", case=f"c{n}") for n, path in enumerate(paths)))
    made = [pydicom.dcmread(path) for path in exported.files if "source" not in path.name]
    series = {(one.SeriesInstanceUID, one.SOPClassUID) for one in made}
    assert len(made) == 2 * (2 + 3) and len(series) == 2 * 4
    captures = [one for one in made if one.SOPClassUID.name == "Secondary Capture Image Storage"]
    assert sorted(one.InstanceNumber for one in captures) == [1, 1, 2, 2]


def test_the_same_model_makes_the_same_objects_and_another_model_new_series(write_series, case_of, export, run):
    cases = [case_of(path, "L", case=f"c{n}") for n, path in enumerate(write_series("MR", 2))]
    cases.append(case_of(write_series("DX", 1)[0], "R", case="c9"))

    def identifiers(**changes):
        exported = replace(export, force=True, **changes).write(*cases)
        made = {path.name: pydicom.dcmread(path, stop_before_pixels=True) for path in exported.files}
        return {name: (one.SeriesInstanceUID, one.SOPInstanceUID) for name, one in made.items()}

    first = identifiers()
    assert len({uid for _, uid in first.values()}) == len(first) and identifiers() == first
    other = identifiers(run=replace(run, model_hash="f" * 16))
    for name, pair in first.items():
        kept = set(pair) & set(other[name])
        assert kept == (set(pair) if name.endswith("source.dcm") else set()), name
    assert not {uid for pair in first.values() for uid in pair} & {
        uid for pair in identifiers(salt=b"pepper").values() for uid in pair
    }


def test_two_patients_of_many_cases_are_two_patients_and_studies_even_under_one_study(write_series, case_of, export):
    mixed = write_series("CR", 2)  # one study, of two patients by the manifest
    cases = [case_of(path, "R", case=f"c{n}", patient=f"P{n}") for n, path in enumerate(mixed)]
    cases += [case_of(path, "R", case=f"d{n}", patient="P0") for n, path in enumerate(write_series("CR", 3))]
    made = [pydicom.dcmread(path) for path in export.write(*cases).files]
    assert {one.PatientID for one in made} == {patient_name(b"salt", f"P{n}") for n in (0, 1)}
    assert len({one.StudyInstanceUID for one in made}) == 3
    assert len({(one.StudyInstanceUID, one.PatientID) for one in made}) == 3


def test_a_segmentation_and_a_map_have_a_frame_for_each_slice_where_it_was_scanned(
    write_series, case_of, export, make_case
):
    paths = write_series("MR", 4)
    flat = replace(make_case(1).teacher, class_map=np.ones((16, 16), np.float32))
    cases = [case_of(path, "L", case=f"c{n}") for n, path in enumerate(paths)]
    cases[1] = case_of(paths[1], "L", case="c1", teacher=flat)
    exported = export.write(*reversed(cases[:3]))
    (file,) = (path for path in exported.files if "teacher_mask" in path.name)
    mask = pydicom.dcmread(file)
    assert mask.NumberOfFrames == 2, "the empty slice and the one that was not exported have no frame"
    sources = [pydicom.dcmread(export.folder / f"c{n}_source.dcm") for n in (0, 2)]
    frames = {_source_of(frame): frame for frame in mask.PerFrameFunctionalGroupsSequence}
    assert set(frames) == {source.SOPInstanceUID for source in sources}
    assert [_source_of(frame) for frame in mask.PerFrameFunctionalGroupsSequence] == [
        source.SOPInstanceUID for source in sorted(sources, key=_depth)
    ]
    for source in sources:
        position = frames[source.SOPInstanceUID].PlanePositionSequence[0].ImagePositionPatient
        assert list(position) == list(source.ImagePositionPatient)
    expected = [case_of(paths[n], "L").attention_on(read_original(cases[n].source), "teacher") > 0.4 for n in (0, 2)]
    assert np.array_equal(mask.pixel_array, np.array(expected)) and expected[0].any()
    (file,) = (path for path in exported.files if "teacher_map" in path.name)
    full = pydicom.dcmread(file)
    depths = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in full.PerFrameFunctionalGroupsSequence]
    along = [float(np.dot(position, np.cross([0, 1, 0], [0, 0, -1]))) for position in depths]
    assert full.NumberOfFrames == 4 and along == sorted(along)
    empty = [not frame.any() for frame in full.pixel_array]
    order = sorted(range(4), key=lambda n: _depth(pydicom.dcmread(paths[n])))
    assert empty == [n in (1, 3) for n in order]


def _depth(image):
    cosines = np.array(image.ImageOrientationPatient, float)
    return float(np.dot(np.array(image.ImagePositionPatient, float), np.cross(cosines[:3], cosines[3:])))


def _source_of(frame):
    return frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID


def test_two_echoes_and_two_orientations_of_a_series_are_stacks_of_their_own(write_series, case_of, export):
    paths = write_series("MR", 4)
    for path, changes in zip(paths[2:], ({}, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}), strict=True):
        image = pydicom.dcmread(path)
        image.ImagePositionPatient = pydicom.dcmread(paths[0]).ImagePositionPatient
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        image.save_as(path)
    exported = replace(export, maps=False).write(*(case_of(path, "L", case=f"c{n}") for n, path in enumerate(paths)))
    masks = [pydicom.dcmread(path) for path in exported.files if "teacher_mask" in path.name]
    assert [mask.NumberOfFrames for mask in masks] == [2, 1, 1] and exported.left_out == ()
    assert len({mask.SOPInstanceUID for mask in masks}) == 3


def test_study_dates_are_empty_or_shifted_alike_for_a_patient(write_source, case_of, export):
    path = write_source("CR", _source_values("CR"))
    later = write_source("CR", _source_values("CR"), StudyDate="20200109")
    cases = [case_of(one, "R", case=f"c{n}") for n, one in enumerate((path, later))]
    assert {pydicom.dcmread(file).StudyDate for file in export.write(*cases).files} == {""}
    shifted = replace(export, shift_dates=True, force=True).write(*cases)
    dates = [{pydicom.dcmread(file).StudyDate for file in shifted.files if f"c{n}_" in file.name} for n in (0, 1)]
    (first,), (second,) = dates
    assert first < "20200102" and date.fromisoformat(second) - date.fromisoformat(first) == timedelta(7)


@pytest.mark.slow
def test_a_whole_export_has_no_error_and_its_objects_agree(write_series, case_of, export, tmp_path):
    """Both sides in one series, unknown sides, two patients, calibrated and detector spacing, pictures."""
    import cv2

    cv2.imwrite(str(tmp_path / "knee.png"), (_source_values("MR") // 8).astype(np.uint8))
    files = [(path, "L") for path in write_series("MR", 2)]
    files += [(path, "") for path in write_series("MR", 2, Laterality=None)]
    files += zip(write_series("CR", 3, Laterality=None), ("R", "L", ""), strict=True)
    calibrated = {"PixelSpacing": [0.18, 0.18], "PixelSpacingCalibrationType": "GEOMETRY"}
    files += [(path, "R") for path in write_series("DX", 2, PatientID="OTHER", **calibrated)]
    files += [(tmp_path / "knee.png", "R"), (tmp_path / "knee.png", "")]
    cases = [
        case_of(path, side, case=f"c{n:010x}", patient="" if n < 7 else "q") for n, (path, side) in enumerate(files)
    ]
    exported = replace(export, shift_dates=True).write(*cases)
    assert len(exported.files) > 40 and exported.left_out == ()
    assert {file.name: found for file in exported.files if (found := _complaints(file))} == {}
    assert _disagreements(exported.files) == []


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


def test_a_radiograph_with_only_an_orientation_in_space_has_a_report(write_source, case_of, export):
    space = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "PatientOrientation": None}
    exported = export.write(case_of(write_source("CR", _source_values("CR"), **space), "R"))
    assert exported.left_out == () and "teacher_report" in _named(exported)
