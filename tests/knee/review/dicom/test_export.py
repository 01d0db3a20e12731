from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from knee.errors import UserError
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


_TIMES = (
    *("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"),
    *("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)


def test_an_export_that_is_repeated_differs_in_nothing_but_the_times_of_its_making(write_series, case_of, export):
    cases = [case_of(path, "L", case=f"c{n}") for n, path in enumerate(write_series("MR", 2))]
    cases.append(case_of(write_series("DX", 1)[0], "R", case="c9"))
    first = {path.name: _without_times(path) for path in replace(export, force=True).write(*cases).files}

    again = {path.name: _without_times(path) for path in replace(export, force=True).write(*cases).files}
    assert len(first) == 17 and first == again


def _without_times(path):
    made = pydicom.dcmread(path)
    for keyword in _TIMES:
        if keyword in made:
            del made[keyword]
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()


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


@pytest.mark.slow
def test_a_hundred_and_fifty_objects_of_twelve_kinds_have_no_error_and_agree(
    write_series, write_enhanced, case_of, export, tmp_path
):
    """Copies, captures and reports of DX, CR, MR and frames, captures of pictures, segmentations, maps: three patients."""
    import cv2

    cv2.imwrite(str(tmp_path / "knee.png"), (_source_values("MR") // 8).astype(np.uint8))
    files = [(path, "L") for path in write_series("MR", 16)] + [(path, "") for path in write_series("MR", 8)]
    enhanced = write_enhanced(5)
    files += [(f"{enhanced}#{number}", "L") for number in range(5)]
    files += zip(write_series("CR", 5, Laterality=None, PatientID="TWO"), ("R", "L", "", "R", "L"), strict=True)
    files += zip(write_series("DX", 4, PatientID="TWO"), "RLRL", strict=True)
    files += [(tmp_path / "knee.png", "R")]
    exported = export.write(*(case_of(path, side, case=f"c{n:010x}") for n, (path, side) in enumerate(files)))
    assert exported.left_out == ()
    made = [pydicom.dcmread(path, stop_before_pixels=True) for path in exported.files]
    sources = {f"c{n:010x}": _origin(path) for n, (path, _) in enumerate(files)}
    kinds = {
        (one.SOPClassUID, sources[path.name.split("_")[0]]) for one, path in zip(made, exported.files, strict=True)
    }
    assert len(made) >= 150 and len(kinds) >= 12, (len(made), len(kinds))
    reports = [one.SeriesInstanceUID for one in made if one.Modality == "SR"]
    assert len(reports) == len(set(reports)) == 2 * (3 + 9), "each report is a series of its own"
    assert {file.name: found for file in exported.files if (found := _complaints(file))} == {}
    assert _disagreements(exported.files) == []


def _origin(path):
    """What a case was made from: MR, frames of an Enhanced MR, CR, DX or a picture."""
    return Path(str(path).split("#")[0]).stem.split("_")[0]


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
