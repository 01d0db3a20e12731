"""Whose knee an image of a folder shows: never one person under two names, and asked where it may be read in two ways."""

import shlex

import numpy as np
import pandas as pd
import pydicom
import pytest

from knee.data.strata import make_split
from knee.errors import UserError
from knee.images.dicom import Subject, read_subject
from knee.images.read import write_png
from knee.intake.folders import manifest_from_folder
from knee.intake.naming import side_in_path

RNG = np.random.default_rng(0)


def touch(folder, *names):
    for name in names:
        write_png(folder / name, RNG.integers(0, 256, (8, 8), np.uint8))


def write_dicom(path, **fields):
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = RNG.integers(0, 256, (8, 8), np.uint8).tobytes()
    for name, value in fields.items():
        setattr(image, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def told(folder, **options):
    """Patient and side by image."""
    table = manifest_from_folder(folder, **options)
    return {row.image: (row.patient, row.side) for row in table.itertuples()}


def noted(folder, **options):
    return " ".join(manifest_from_folder(folder, **options).attrs["notes"])


def refused(folder, **options):
    with pytest.raises(UserError) as caught:
        manifest_from_folder(folder, **options)
    return str(caught.value)


def suggested_in(message, option="--pattern"):
    """The first value of an option in a message, as a shell reads it."""
    words = shlex.split(message[message.index(option) :])
    return words[1].rstrip(",;.")


def test_slices_in_a_patients_folder_are_of_that_patient_and_stay_in_one_split(tmp_path):
    cases = [(case % 5, f"case{case:03d}") for case in range(20)]
    touch(tmp_path, *(f"{grade}/{case}/slice{number:02d}.png" for grade, case in cases for number in range(3)))
    table = manifest_from_folder(tmp_path)
    assert sorted(set(table["patient"])) == [case for _, case in sorted(cases, key=lambda one: one[1])]
    assert table["grade"].tolist() == [int(name[0]) for name in table["image"]]
    assert "such as 'slice00' do not identify a patient" in " ".join(table.attrs["notes"])
    split = make_split(table, seed=0).assign(case=[name.split("/")[1] for name in table["image"]])
    assert split.groupby("case")["split"].nunique().eq(1).all()
    assert split["split"].nunique() == 3


def test_one_patient_below_two_grades_is_one(tmp_path):
    touch(tmp_path, "0/p7/left.png", "3/p7/right.png", "1/p8/L.png", "1/p8/knee_right.png")
    assert told(tmp_path) == {
        "0/p7/left.png": ("p7", "L"),
        "3/p7/right.png": ("p7", "R"),
        "1/p8/L.png": ("p8", "L"),
        "1/p8/knee_right.png": ("p8", "R"),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P1/slice1.png", ("P1", "")),
        ("train/P1/slice1.png", ("P1", "")),
        ("2/P1/left/slice1.png", ("P1", "L")),
        ("2/P1_R/slice1.png", ("P1", "R")),
        ("2/77L/slice1.png", ("77", "L")),
        ("2/P1/slice1_L.png", ("P1", "L")),
        ("2/right/1001.png", ("1001", "R")),
        ("ungraded/site A/1001L.png", ("1001", "L")),
    ],
)
def test_patient_and_side_by_place(tmp_path, name, expected):
    folder, _, last = name.rpartition("/")
    other = f"{folder}/{last.replace('slice1', 'slice2').replace('1001', '1002')}"
    touch(tmp_path, name, other)
    assert told(tmp_path, layout="tree")[name] == expected
    # What grades one image alone, without its data set, finds the same side.
    assert side_in_path((tmp_path / name).as_posix()) == expected[1]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["2/A/1001_L.png", "3/B/1001_R.png"], r"2/A/1001_L.png and 3/B/1001_R.png: one name in two folders"),
        (["V00/1001.png", "V01/1001.png"], "one patient or two.*--pattern folder.*--pattern file"),
        (["P1/IM0001.png", "P2/IM0001.png"], "1 such name"),
        (["2/P1/T1/slice1.png", "3/P2/T1/slice1.png"], "which of the folders 'P1', 'T1' is the patient"),
        (["2/slice1.png", "3/slice1.png"], "neither the name 'slice1' nor a folder identifies the patient"),
        (["left.png", "right.png"], "put the images of each patient into a folder"),
        (["0/1.png", "Grade 3/p/left.png", "Grade 3/left.png"], "neither the name 'left'"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(tmp_path, names, reason):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=reason):
        manifest_from_folder(tmp_path)


@pytest.mark.parametrize("masks", ["train/masks", "Masks", "mask", "labels", "segmentations"])
def test_folders_that_look_like_masks_are_not_called_patients(tmp_path, masks):
    images = "train/images" if "/" in masks else "images"
    touch(tmp_path, f"{images}/1.png", f"{images}/2.png", f"{masks}/1.png", f"{masks}/2.png")
    with pytest.raises(UserError) as caught:
        manifest_from_folder(tmp_path)
    told = str(caught.value)
    assert told.startswith(
        f"{images}/1.png and {masks}/1.png: one name in two folders (2 such names); if '{masks}' contains masks"
    )
    assert f"move them to 'masks', each under the path of its image (masks/{images}/1.png)" in told
    for name in ("1.png", "2.png"):
        (tmp_path / "masks" / images).mkdir(parents=True, exist_ok=True)
        (tmp_path / masks / name).rename(tmp_path / "masks" / images / name)
    assert set(manifest_from_folder(tmp_path)["mask"]) == {f"masks/{images}/1.png", f"masks/{images}/2.png"}


def test_folder_or_file_on_request(tmp_path):
    touch(tmp_path, "2/A/1001_L.png", "3/B/1001_R.png")
    assert set(told(tmp_path, pattern="file").values()) == {("1001", "L"), ("1001", "R")}
    assert set(told(tmp_path, pattern="folder").values()) == {("A", "L"), ("B", "R")}
    assert set(told(tmp_path, pattern="(?P<patient>[AB])/").values()) == {("A", ""), ("B", "")}
    touch(tmp_path, "2/1002.png")
    with pytest.raises(UserError, match=r"2/1002.png: is not in a patient folder"):
        manifest_from_folder(tmp_path, pattern="folder")


def test_names_beside_splits_and_grades_are_as_they_were(tmp_path):
    touch(tmp_path, "train/2/9001L.png", "train/0/9001R.png", "auto_test/0/9001R.png", "ungraded/7_L.png")
    assert set(told(tmp_path).values()) == {("9001", "L"), ("9001", "R"), ("7", "L")}


def test_sides_inside_names_are_noted_where_no_two_are_of_one_patient(tmp_path):
    touch(tmp_path, "007_L_v1.png", "008R_v1.png", "left 9.png", "010_L.png", "010_R.png", "plural_11.png")
    assert len({patient for patient, _ in told(tmp_path).values()}) == 5
    assert "3 names ('007_L_v1' first) with a side that is not at the end" in noted(tmp_path)
    touch(tmp_path, "other/011_L.png", "other/012_right.png")
    assert "with a side" not in noted(tmp_path / "other")


def test_two_knees_of_a_patient_by_sides_inside_names_are_asked_about(tmp_path):
    names = ("007_L_v1.png", "007_R_v1.png", "010_L.png", "010_R.png")
    touch(tmp_path, *names)
    pattern = suggested_in(refused(tmp_path))
    assert set(told(tmp_path, pattern=pattern).values()) == {("007", "L"), ("007", "R"), ("010", "L"), ("010", "R")}
    assert "with a side" not in noted(tmp_path, pattern=pattern)


def test_dicom_files_tell_their_patient_and_side(tmp_path):
    write_dicom(tmp_path / "0/a.dcm", PatientID="X7 ", ImageLaterality="L")
    write_dicom(tmp_path / "3/b.dcm", PatientID="X7", SeriesDescription="SAG_RIGHT")
    write_dicom(tmp_path / "1/c_R.dcm", PatientID="X8")
    write_dicom(tmp_path / "1/d_L.dcm", PatientID="", Laterality="R")
    touch(tmp_path, "1/e_L.png")
    expected = [("X7", "L"), ("X8", "R"), ("d", "R"), ("e", "L"), ("X7", "R")]
    assert list(told(tmp_path).values()) == expected
    notes = noted(tmp_path)
    assert "patient of 3 of 5 images is the PatientID" in notes
    assert "of the other 2, it is inferred as above" in notes
    assert "3 of 4 DICOM files give the side" in notes
    assert "1 file ('1/d_L.dcm' first) have another side in their names than in the DICOM header" in notes
    assert "X7" not in notes
    by_name = told(tmp_path, pattern=r"/(?P<patient>[a-z])(_(?P<side>[LR]))?\.")
    assert list(by_name.values()) == [("a", "L"), ("c", "R"), ("d", "L"), ("e", "L"), ("b", "R")]


ONE, TWO = "M\u00fcller", "Mu\u0308ller"
"""One name as most programs store it, and as macOS does."""


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ((f"0/{ONE}_L.png", f"1/{TWO}_R.png"), {}),
        ((f"0/{ONE}/L.png", f"1/{TWO}/R.png"), {}),
        ((f"0/{ONE}_L_1.png", f"1/{TWO}_R_1.png"), {"pattern": f"/(?P<patient>{ONE})_(?P<side>[LR])"}),
        ((f"0/{ONE}_L_1.png", f"1/{TWO}_R_1.png"), {"pattern": f"/(?P<patient>{TWO})_(?P<side>[LR])"}),
    ],
    ids=["file", "folder", "pattern", "pattern of two letters"],
)
def test_a_name_stored_in_two_ways_is_one_patient_and_paths_stay_as_they_are(tmp_path, names, options):
    touch(tmp_path, *names)
    assert told(tmp_path, **options) == {names[0]: (ONE, "L"), names[1]: (ONE, "R")}
    assert all((tmp_path / name).is_file() for name in told(tmp_path, **options))


def test_a_name_of_two_patients_is_asked_about_however_it_is_stored(tmp_path):
    touch(tmp_path, f"visit1/{ONE}_L.png", f"visit2/{TWO}_L.png")
    with pytest.raises(UserError, match="one name in two folders"):
        manifest_from_folder(tmp_path)


def test_a_patient_id_stored_in_two_ways_is_one_patient(tmp_path):
    for name, patient in (("a.dcm", ONE), ("b.dcm", TWO)):
        write_dicom(tmp_path / name, PatientID=patient, SpecificCharacterSet="ISO_IR 192")
    assert {patient for patient, _ in told(tmp_path).values()} == {ONE}


def test_dicom_names_that_name_nobody_need_no_folder(tmp_path):
    write_dicom(tmp_path / "0/left.dcm", PatientID="1", ImageLaterality="L")
    write_dicom(tmp_path / "1/left.dcm", PatientID="2", ImageLaterality="L")
    assert list(told(tmp_path).values()) == [("1", "L"), ("2", "L")]


def test_one_patient_id_in_all_files_is_noted(tmp_path):
    for number in range(3):
        write_dicom(tmp_path / f"{number}.dcm", PatientID="anonymous")
    assert "All these have one PatientID" in noted(tmp_path)
    assert set(told(tmp_path).values()) == {("anonymous", "")}
    assert set(told(tmp_path, pattern="file")) == {"0.dcm", "1.dcm", "2.dcm"}
    assert {patient for patient, _ in told(tmp_path, pattern="file").values()} == {"0", "1", "2"}


def test_header_alone_is_read_and_damage_is_none(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, PatientID="1", ImageLaterality="B")
    assert read_subject(path) == Subject("1", "")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00") + 12])  # the pixels are gone
    assert read_subject(path) == Subject("1", "")
    path.write_bytes(data[:150])
    assert read_subject(path) in (None, Subject("", ""))
    path.write_bytes(b"no DICOM")
    assert read_subject(path) is None
    assert read_subject(tmp_path / "gone.dcm") is None


def test_dicom_without_a_suffix_is_found_and_other_files_are_counted(tmp_path):
    write_dicom(tmp_path / "2" / "1.2.840.7", PatientID="1")
    write_dicom(tmp_path / "2" / "IM0001", PatientID="2")
    write_dicom(tmp_path / "DICOMDIR", PatientID="3")
    touch(tmp_path, "2/a.png")
    for name in ("2/b.bmp", "2/c.bmp", "2/d", "2/1.3.841", "readme.md", "grades.csv"):
        (tmp_path / name).write_bytes(b"x" * 200)
    table = manifest_from_folder(tmp_path, "tree")
    assert table["image"].tolist() == ["2/1.2.840.7", "2/IM0001", "2/a.png"]
    assert table["patient"].tolist() == ["1", "2", "a"]
    assert "4 files passed over" in table.attrs["notes"][-1]
    assert "(without a suffix: 2, .bmp: 2)" in table.attrs["notes"][-1]
    for name in ("2/a.png", "2/IM0001", "2/1.2.840.7"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"contains no images.*4 files passed over"):
        manifest_from_folder(tmp_path)


def test_folders_that_are_no_grade_are_named(tmp_path):
    touch(tmp_path, "0/1.png", "1/2.png", "2/3.png", "Stage 3/4.png", "Stage 4/5.png", "ungraded/6.png")
    table = manifest_from_folder(tmp_path, grade_count=5)
    assert table["grade"].tolist() == [0, 1, 2, pd.NA, pd.NA, pd.NA]
    (note,) = [note for note in table.attrs["notes"] if note.startswith("No grade")]
    assert note.startswith("No grade is read from the folders 'Stage 3', 'Stage 4'; a grade folder is named after its")
    touch(tmp_path, *(f"site {letter}/{number}0.png" for number, letter in enumerate("abcde")))
    assert "'Stage 3', 'Stage 4', 'site a', 'site b', 'site c', 2 more;" in noted(tmp_path, layout="tree")


def test_folders_of_patients_are_not_called_unknown(tmp_path):
    touch(tmp_path, "P1/slice1.png", "P1/slice2.png", "P2/slice1.png")
    assert "No grade is read" not in noted(tmp_path)
