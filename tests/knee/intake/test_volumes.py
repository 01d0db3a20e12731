"""Volumes put in: NIfTI files and DICOM series become slices of one knee, in order of position."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from dcmt.cli import main
from knee.data.manifest import inspect_manifest
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.images.read import read_image
from knee.images.slices import parse_slices
from knee.intake.headers import read_header
from knee.intake.volumes import expand, refuse_volumes

MR = pydicom.uid.MRImageStorage
AXIAL = [1, 0, 0, 0, 1, 0]
SAGITTAL = [0, 1, 0, 0, 0, -1]


def draw_volume(study, name: str, slices: int = 9, *, axis: int = 2) -> None:
    """A NIfTI volume with wide spacing along ``axis``; the mean of slice k is 100 k + 50 or so."""
    path = study.images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 100, (8, 8, slices)) + 100 * np.arange(slices)
    affine = np.diag([0.4, 0.4, 0.4, 1.0])
    affine[axis, axis] = 3
    affine[:3, 3] = -50
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(values, 2, axis).astype(np.int16), affine), path)


def draw_series(study, names: list[str], positions: list[float], *, normal: int = 0, **fields: object) -> None:
    """DICOM slices at ``positions`` along x (sagittal) or z (axial)."""
    for name, mm in zip(names, positions, strict=True):
        place = [mm if axis == normal else -40.0 for axis in range(3)]
        orientation = SAGITTAL if normal == 0 else AXIAL
        given = {"SeriesInstanceUID": "1.2.9", "PatientID": "P1", "Modality": "MR", "StudyInstanceUID": "1.2"}
        given |= {"ImagePositionPatient": place, "ImageOrientationPatient": orientation}
        study.draw_dicom(name, kind=MR, **{**given, **fields})


@pytest.mark.parametrize(
    ("choice", "count", "numbers"),
    [
        ("all", 5, [0, 1, 2, 3, 4]),
        ("middle:1", 5, [2]),
        ("middle:2", 5, [1, 2]),
        ("middle:3", 6, [1, 2, 3]),
        ("middle:20", 3, [0, 1, 2]),
        ("1-3", 5, [1, 2, 3]),
        ("3-60", 5, [3, 4]),
        ("4-4", 5, [4]),
        ("5-9", 5, []),
    ],
)
def test_choices_of_slices(choice, count, numbers):
    assert list(parse_slices(choice).numbers(count)) == numbers
    assert str(parse_slices(choice)) == choice


@pytest.mark.parametrize("text", ["", "middle", "middle:0", "middle:-3", "9-3", "-3", "5", "all,2", "middle:1e3"])
def test_other_choices_are_refused(text):
    with pytest.raises(UserError, match=r"write all, middle:20 or"):
        parse_slices(text)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_volume_becomes_slices_of_one_knee(study, axis):
    draw_volume(study, "2/9001_L.nii.gz", axis=axis)
    draw_volume(study, "0/9002_R.nii.gz", 4, axis=axis)
    study.draw("0/9003_R.png")
    table = study.table(slices=parse_slices("middle:3"))
    assert table["image"].tolist() == [
        *(f"0/9002_R.nii.gz#{k}" for k in (0, 1, 2)),
        "0/9003_R.png",
        *(f"2/9001_L.nii.gz#{k}" for k in (3, 4, 5)),
    ]
    assert table["patient"].tolist() == ["9002"] * 3 + ["9003"] + ["9001"] * 3
    assert table["grade"].tolist() == [0] * 4 + [2] * 3
    assert table["side"].tolist() == ["R"] * 4 + ["L"] * 3
    assert table["series"].tolist() == ["0/9002_R.nii.gz"] * 3 + [""] + ["2/9001_L.nii.gz"] * 3
    for name in table["image"][4:]:
        assert read_image(study.images / name).values.mean() // 100 == int(name[-1])


def test_a_sheets_grade_is_that_of_all_slices(study):
    draw_volume(study, "9001_L.nii.gz")
    draw_volume(study, "9001_R.nii.gz")
    sheet = study.csv("patient,side,KL", "9001,L,3", "9001,R,1")
    table = study.table(sheet, slices=parse_slices("2-4"))
    assert table["grade"].tolist() == [3] * 3 + [1] * 3


def test_the_hint_for_a_volume_works_when_pasted(study, option, caplog):
    draw_volume(study, "9001.nii.gz", 30)
    message = study.refusal()
    assert "1 volume ('9001.nii.gz' first, with 30 slices)" in message
    out = study.folder / "m.csv"
    assert main(["manifest", str(study.images), "--out", str(out)]) == 2
    assert (
        main(["manifest", str(study.images), "--out", str(out), "--slices", option(message, "--slices")[0].split()[0]])
        == 0
    )
    table = pd.read_csv(out)
    assert table["image"].str.rpartition("#")[2].astype(int).tolist() == list(range(5, 25))
    assert inspect_manifest(out, load_grade_set("kl")).bad == ()


def test_a_choice_that_fits_nothing_is_refused(study):
    study.draw("1.png", "2.png")
    assert "leave out --slices" in study.refusal(slices=parse_slices("all"))
    draw_volume(study, "9001.nii.gz", 5)
    assert "9001.nii.gz: has slices 0 to 4, none of them in --slices 5-9" in study.refusal(slices=parse_slices("5-9"))


def test_the_mask_of_a_volume_is_cut_like_it(study):
    draw_volume(study, "9001.nii.gz", 5)
    draw_volume(study, "masks/9001.nii.gz", 5)
    table = study.table(slices=parse_slices("middle:1"))
    assert table[["image", "mask"]].to_numpy().tolist() == [["9001.nii.gz#2", "masks/9001.nii.gz#2"]]
    draw_volume(study, "masks/9001.nii.gz", 4)
    assert "has 4 slices, its volume '9001.nii.gz' 5" in study.refusal(slices=parse_slices("middle:1"))


@pytest.mark.parametrize("normal", [0, 2])
def test_a_series_is_ordered_by_position_whatever_its_names(study, normal):
    order = np.random.default_rng(1).permutation(7)
    names = [f"P1/IM{number}.dcm" for number in order]
    # Instance numbers run backwards; positions decide.
    for number, name in enumerate(names):
        draw_series(study, [name], [3.0 * number - 9], normal=normal, InstanceNumber=7 - number)
    found = study.column("series")
    # The normal of the sagittal slices points to negative x.
    expected = names[::-1] if normal == 0 else names
    assert list(found) == expected
    assert len(set(found.values())) == 1
    assert max(found.values()).startswith("P1/series-")
    assert list(study.column("grade", slices=parse_slices("middle:3"))) == expected[2:5]
    assert list(study.column("grade", slices=parse_slices("5-9"))) == expected[5:]


def test_a_series_without_positions_is_ordered_by_instance_number(study):
    for number, name in zip([10, 9, 2], "abc", strict=True):
        draw_series(study, [f"{name}.dcm"], [0], InstanceNumber=number, ImagePositionPatient=None)
    assert list(study.column("series")) == ["c.dcm", "b.dcm", "a.dcm"]


def test_series_orientations_echoes_and_patients_are_apart(study):
    draw_series(study, ["a1.dcm", "a2.dcm"], [0, 3])
    draw_series(study, ["b1.dcm", "b2.dcm"], [0, 3], SeriesInstanceUID="1.2.8")
    draw_series(study, ["c1.dcm", "c2.dcm"], [0, 3], normal=2)
    draw_series(study, ["d1.dcm", "d2.dcm"], [0, 3], EchoTime=20)
    draw_series(study, ["e1.dcm", "e2.dcm"], [0, 3], PatientID="P2")
    draw_series(study, ["f1.dcm"], [0], SeriesInstanceUID="1.2.7")
    table = study.table()
    by_series = table[table["series"] != ""].groupby("series")["image"].agg(lambda names: {name[0] for name in names})
    assert sorted(map(sorted, by_series)) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert table.loc[table["image"] == "f1.dcm", "series"].item() == ""


def test_radiographs_of_one_series_are_no_volume(study):
    for name in ("L.dcm", "R.dcm"):
        study.draw_dicom(f"P1/{name}", SeriesInstanceUID="1.2.9", Modality="DX", PatientID="P1")
    assert "series" not in study.table()


def test_two_images_at_one_position_are_refused_where_slices_are_chosen(study):
    draw_series(study, ["a.dcm", "b.dcm", "c.dcm"], [0, 3, 3])
    assert len(study.table(slices=parse_slices("all"))) == 3
    assert "two images of one series at one position" in study.refusal(slices=parse_slices("middle:2"))


def test_a_series_of_two_sides_is_refused(study):
    draw_series(study, ["a_L.dcm", "b_R.dcm"], [0, 3])
    assert "slices of one series, but of patient 'P1', side" in study.refusal()


def test_the_reader_refuses_a_series_of_two_knees(study):
    study.draw("1.png", "2.png", "3.png", "4.png")
    lines = [f"images/{k}.png,P{k // 3},{side},,,{series}" for k, side, series in
             [(1, "L", "a"), (2, "R", "a"), (3, "L", ""), (4, "R", "")]]  # fmt: skip
    path = study.csv("image,patient,side,grade,mask,series", *lines, name="m.csv")
    (bad,) = inspect_manifest(path, load_grade_set("kl")).bad
    assert bad.line == 3
    assert "series 'a' has another side than on line 2" in bad.reason


def test_the_frames_of_one_dicom_file_are_chosen_like_slices(study):
    values = np.random.default_rng(0).integers(0, 4000, (5, 8, 8)).astype(np.uint16)
    study.draw_dicom(
        "p1/enhanced.dcm", kind=pydicom.uid.EnhancedMRImageStorage, Modality="MR", SeriesInstanceUID="1.2.9"
    )
    path = study.images / "p1" / "enhanced.dcm"
    image = pydicom.dcmread(path)
    image.Rows, image.Columns, image.NumberOfFrames = 8, 8, 5
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = values.tobytes()
    image.save_as(path)
    found = expand(study.images, ["p1/enhanced.dcm"], {"p1/enhanced.dcm": read_header(path)}, parse_slices("middle:2"))
    assert [one.image for one in found] == ["p1/enhanced.dcm#1", "p1/enhanced.dcm#2"]
    assert {one.series for one in found} == {"p1/enhanced.dcm"}
    assert read_image(study.images / found[1].image).values == pytest.approx(values[2])
    with pytest.raises(UserError, match=r"1 volume \('p1/enhanced.dcm' first, with 5 slices\)"):
        refuse_volumes(study.images, ["p1/enhanced.dcm"], {"p1/enhanced.dcm": read_header(path)})
