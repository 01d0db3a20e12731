from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from knee.errors import UserError
from knee.images.read import prepare, read_pixels
from knee.review.export import FORMATS, Identity, ReviewExport
from knee.review.key import read_key


@pytest.fixture
def cases(tmp_path, make_case, write_source):
    cv2.imwrite(str(tmp_path / "knee.png"), np.tile(np.arange(100, dtype=np.uint8), (80, 1)))
    sources = [tmp_path / "knee.png", write_source("MR", np.arange(8000, dtype=np.uint16).reshape(100, 80))]
    made = []
    for number, source in enumerate(sources):
        image, geometry = prepare(read_pixels(source).values, 128)
        made.append(make_case(number, image=image, geometry=geometry, source=source))
    return made


@pytest.fixture
def export(tmp_path, run):
    return ReviewExport(tmp_path / "review", run, FORMATS, tmp_path / "local" / "review_key.csv", "1.0", b"salt")


def _identities(cases):
    return {case.case: Identity(f"images/{case.source.path.name}", "p1") for case in cases}


def test_one_pass_writes_every_format(export, cases):
    export.write(iter(cases), _identities(cases))
    names = sorted(path.relative_to(export.folder).as_posix() for path in export.files)
    assert len(names) == 1 + 4 + 4 + 2 + 7 and "review.html" in names
    assert all(path.is_file() for path in export.files) and export.left_out == [] and export.cases == 2
    key = read_key(export.key_path)
    assert key[cases[1].case].image == f"images/{cases[1].source.path.name}"
    assert key[cases[1].case].teacher_grade == cases[1].teacher.grade
    assert "images/" not in (export.folder / "review.html").read_text()


def test_the_key_keeps_the_cases_of_earlier_exports(export, cases, make_case):
    export.write(cases, _identities(cases))
    later = replace(export, formats=("html",), force=True)
    later.write([make_case(9)], {make_case(9).case: Identity("images/9.png", "p9")})
    assert set(read_key(export.key_path)) == {*(case.case for case in cases), make_case(9).case}


def test_the_key_tells_the_model_of_each_case_and_ends_with_the_latest_export(export, cases, run):
    export.write(cases, _identities(cases))
    later = replace(export, formats=("html",), force=True, run=replace(run, model_hash="f" * 16))
    later.write(cases[:1], _identities(cases))
    assert [(case.case, case.model_hash) for case in read_key(export.key_path).values()] == [
        (cases[1].case, run.model_hash),
        (cases[0].case, "f" * 16),
    ]


def test_what_cannot_be_made_of_one_case_is_listed_and_everything_else_is_written(export, cases, monkeypatch):
    def fail(*_, **__):
        raise KeyError("of a library")

    monkeypatch.setattr("knee.review.dicom.export.segmentation", fail)
    monkeypatch.setattr("knee.review.png.case_picture", fail)
    monkeypatch.setattr("knee.review.nifti.dicom_affine", fail)
    export.write(cases, _identities(cases))
    told = "\n".join(export.left_out)
    for number, what in ((0, "png"), (1, "png"), (1, "nifti"), (1, "teacher_mask"), (1, "student_mask")):
        assert f"case {cases[number].case}: no {what} (KeyError: 'of a library')" in told
    assert len(export.left_out) == 7, "the reports of the series cannot refer to the segmentation either"
    written = {path.relative_to(export.folder).as_posix() for path in export.files}
    assert {f"nifti/{cases[0].case}_student.nii.gz", f"dicom/{cases[1].case}_teacher_capture.dcm"} <= written
    assert "review.html" in written and len(read_key(export.key_path)) == 2


def test_a_full_disk_still_ends_the_export(export, cases, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="cannot be written"):
        export.write(cases, _identities(cases))


def test_nothing_is_exported_where_the_key_cannot_be_written(export, cases):
    export.key_path.parent.parent.joinpath("local").write_text("a file where the folder should be")
    with pytest.raises(
        UserError, match=r"review_key\.csv: cannot be written .* verdicts cannot be imported without it"
    ):
        export.write(cases, _identities(cases))
    assert not export.folder.exists()


def test_an_odd_source_costs_its_own_objects_alone(export, make_case, write_source):
    values = np.arange(8000, dtype=np.uint16).reshape(100, 80)
    sources = {
        "composite": write_source("DX", values, PatientOrientation=["PR", "FR"]),
        "thin": write_source("MR", values, SliceThickness=None),
        "nowhere": write_source("MR", values, ImagePositionPatient=None),
        "nameless": write_source("MR", values, StudyInstanceUID=None),
        "odd class": write_source("MR", values, SOPClassUID="1.2.3"),
        "sound": write_source("MR", values),
    }
    cases = []
    for name, source in sources.items():
        image, geometry = prepare(read_pixels(source).values, 128)
        cases.append(make_case(len(cases), case=name, image=image, geometry=geometry, source=source))
    export.write(cases, _identities(cases))
    assert export.cases == 6 and len(read_key(export.key_path)) == 6
    assert (export.folder / "review.html").read_text().count('"case":') == 6
    made = {name: {path.parent.name for path in export.files if path.name.startswith(f"{name}_")} for name in sources}
    assert made == {name: {"png", "nifti", "dicom"} for name in sources} | {"nameless": {"png", "nifti"}}
    told = "\n".join(export.left_out)
    assert "case thin: the source has no SliceThickness: no map and no segmentation" in told
    assert "case nowhere: the source has no ImagePositionPatient: no map and no segmentation" in told
    assert "case nameless: " in told and "has no StudyInstanceUID" in told
    assert "case odd class: no teacher_mask" in told
    assert "composite" not in told and "sound" not in told


def test_a_source_without_identifiers_has_pictures_and_maps(export, make_case, write_source):
    source = write_source("CR", np.arange(8000, dtype=np.uint16).reshape(100, 80), StudyInstanceUID=None)
    image, geometry = prepare(read_pixels(source).values, 128)
    case = make_case(1, image=image, geometry=geometry, source=source)
    plain = replace(export, formats=("png", "nifti"))
    plain.write([case], _identities([case]))
    assert len(plain.files) == 4 and plain.left_out == []


def test_a_source_that_cannot_be_read_is_listed_and_the_others_are_written(export, cases):
    cases[0].source.path.write_bytes(b"damaged")
    export.write(cases, _identities(cases))
    assert len(export.left_out) == 1 and cases[0].case in export.left_out[0] and "knee.png" in export.left_out[0]
    assert export.cases == 2 and (export.folder / "dicom" / f"{cases[1].case}_source.dcm").exists()


def test_an_earlier_export_is_in_the_way_before_work_begins(export, cases):
    export.write(cases, _identities(cases))

    def never():
        raise AssertionError("a case was computed")
        yield

    with pytest.raises(UserError, match="png: contains an earlier export"):
        replace(export).write(never(), {})
    with pytest.raises(UserError, match="exists already"):
        replace(export, formats=("html",)).write(never(), {})
    replace(export, force=True).write(cases, _identities(cases))


def test_files_of_earlier_cases_go_and_what_others_made_stays(export, cases):
    export.write(cases, _identities(cases))
    made = [export.folder / "verdicts_R1.json", export.folder / "png" / "notes_student.png"]
    made += [export.folder / "png" / f"{cases[0].case}_student copy.png", export.folder / "dicom" / "readme.txt"]
    orphan = export.folder / "dicom" / "c0123456789_student_capture.dcm"  # of an export that was killed
    for path in (*made, orphan):
        path.write_bytes(b"x")
    before = {path for path in export.folder.rglob("*") if path.is_file()}
    later = replace(export, formats=("png", "dicom"), force=True)
    later.write(cases[1:], _identities(cases))
    gone = before - {path for path in export.folder.rglob("*") if path.is_file()}
    assert all(cases[0].case in path.name or path == orphan for path in gone)
    assert later.removed == len(gone) == 2 + 2 + 1
    assert all(path.exists() for path in made)
    kept = {path.name for path in (export.folder / "nifti").iterdir()}
    assert len(kept) == 4, "formats that were not asked for are left alone"
    assert (export.folder / "review.html").exists()
    assert set(read_key(export.key_path)) == {case.case for case in cases}, "verdicts on earlier cases can be imported"


def test_no_case_and_unknown_formats_are_refused(export):
    with pytest.raises(UserError, match="no case to review"):
        export.write([], {})
    with pytest.raises(UserError, match="no case to review"):
        replace(export, formats=("png",)).write([], {})
    assert not export.key_path.exists()
    with pytest.raises(UserError, match="format pdf; choose from html, png, nifti, dicom"):
        replace(export, formats=("html", "pdf"))


def test_a_key_written_during_an_export_loses_no_case(export, cases, make_case):
    """Two exports at once: the second ends while the first is at work."""
    second = replace(export, folder=export.folder.with_name("second"), formats=("html",))

    def meanwhile():
        yield cases[0]
        second.write([make_case(9)], {make_case(9).case: Identity("images/9.png", "p9")})
        yield cases[1]

    export.write(meanwhile(), _identities(cases))
    assert list(read_key(export.key_path)) == [make_case(9).case, *(case.case for case in cases)]
