"""Grades in a spreadsheet: each knee gets its own, and what may be read in two ways is refused with the way out."""

import datetime
import time

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.data.manifest import read_manifest
from knee.errors import Faults, UserError
from knee.grades import load_grade_set
from knee.images.read import write_png
from knee.intake.folders import manifest_from_folder
from knee.intake.sheet import read_sheet
from knee.intake.sheet_join import _as_written, _images_named

KL = load_grade_set("kl")
RNG = np.random.default_rng(0)


def touch(folder, *names):
    for name in names:
        write_png(folder / "images" / name, RNG.integers(0, 256, (8, 8), np.uint8))


def csv_sheet(folder, *lines):
    path = folder / "grades.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def excel_sheet(folder, *rows, more=None):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    for name, others in (more or {}).items():
        page = book.create_sheet(name)
        for row in others:
            page.append(list(row))
    book.save(folder / "grades.xlsx")
    return folder / "grades.xlsx"


def joined(folder, path, *, pattern=None, **options):
    """The manifest's table of the folder's images with the sheet at ``path``."""
    return manifest_from_folder(folder / "images", pattern=pattern, sheet=read_sheet(path, KL, **options))


def grades(folder, path, **options):
    """Grade by image, None where ungraded."""
    table = joined(folder, path, **options)
    return dict(zip(table["image"], numbers(table["grade"]), strict=True))


def numbers(column):
    return [None if pd.isna(grade) else int(grade) for grade in column]


def refusal(folder, path, **options):
    with pytest.raises(UserError) as caught:
        joined(folder, path, **options)
    return str(caught.value)


def facts(sheet):
    """Row, image, patient, side and grade of each entry."""
    return [entry[:5] for entry in sheet.entries]


KNEES = ("9001_L.png", "9001_R.png", "9002_L.png", "9002_R.png")


def test_a_row_a_knee_numbers_as_excel_keeps_them_below_a_title(tmp_path):
    touch(tmp_path, *KNEES)
    path = excel_sheet(
        tmp_path,
        ["Readings 2024"],
        [],
        ["ID", "SIDE", "V00XRKL", "read on"],
        [9001, "1: Right", 3, datetime.date(2024, 1, 2)],
        [9001, "2: Left", 0, None],
        ["9002", "left", 2.0, None],
        [9009, "left", 4, None],
    )
    sheet = read_sheet(path, KL)
    assert sheet.columns == {"patient": "ID", "side": "SIDE", "grade": "V00XRKL"}
    assert [(entry.row, entry.patient, entry.side, entry.grade) for entry in sheet.entries] == [
        (4, "9001", "R", 3),
        (5, "9001", "L", 0),
        (6, "9002", "L", 2),
        (7, "9009", "L", 4),
    ]
    assert grades(tmp_path, path) == {"9001_L.png": 0, "9001_R.png": 3, "9002_L.png": 2, "9002_R.png": None}
    notes = " ".join(joined(tmp_path, path).attrs["notes"])
    assert "3 of 4 images have a grade in the sheet" in notes
    assert "1 row (7 first) match no image" in notes
    assert "1 image ('9002_R.png' first) without a grade in the sheet" in notes


@pytest.mark.parametrize("titles", [("KL_left", "KL_right"), ("left KL", "right KL"), ("KLG (L)", "KLG (R)")])
def test_a_row_a_patient_with_a_column_a_knee(tmp_path, titles):
    touch(tmp_path, *KNEES)
    path = excel_sheet(tmp_path, ["Patient", *titles], [9001, 1, 2], [9002, None, 4])
    assert list(grades(tmp_path, path).values()) == [1, 2, None, 4]


@pytest.mark.parametrize(
    ("text", "grade"),
    [("2", 2), ("2.0", 2), ("KL 2", 2), ("kl2", 2), ("Grade: 2", 2), ("K/L-2", 2), (" 2 ", 2)]
    + [(mark, None) for mark in ("", ".", "-", "NA", "n/a", "NaN", "missing", ".: Missing Form/Incomplete Workbook")],
)
def test_how_a_grade_is_written(tmp_path, text, grade):
    path = csv_sheet(tmp_path, "patient;side;KL", f"1;L;{text}")
    assert read_sheet(path, KL).entries[0].grade == grade


@pytest.mark.parametrize(
    "text", ["5", "-1", "none", "mild", "2.5", "2-3", "?", "KL", "TKR", "²", "grade 22", "2 3", "KL -1", "0KL2"]
)
def test_what_is_no_grade_is_refused_unless_it_is_said_to_be_missing(tmp_path, text):
    path = csv_sheet(tmp_path, "patient;side;KL", f"1;L;{text}", "1;R;2")
    with pytest.raises(Faults, match=r"grades.csv row 2: grade") as caught:
        read_sheet(path, KL)
    assert "--missing" in str(caught.value)
    assert [entry.grade for entry in read_sheet(path, KL, missing=[text]).entries] == [None, 2]


def test_sides_that_are_numbers_are_not_guessed(tmp_path):
    path = csv_sheet(tmp_path, "patient,side,KL", "1,1,2", "1,2,3")
    with pytest.raises(Faults, match="--side '1=R'"):
        read_sheet(path, KL)
    assert [entry.side for entry in read_sheet(path, KL, sides={"1": "R", "2": "L"}).entries] == ["R", "L"]


def test_a_graded_row_of_no_side_where_sides_are_told(tmp_path):
    path = csv_sheet(tmp_path, "patient,side,KL", "1,,2", "2,,", "3,L,1")
    with pytest.raises(Faults, match="row 2: the side is empty") as caught:
        read_sheet(path, KL)
    assert "row 3" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("patient,side,V00XRKL,V01XRKL", "'V00XRKL', 'V01XRKL' may all be the grade"),
        ("patient,KL,KL_left,KL_right", "'KL', 'KL_left', 'KL_right' may all be grades"),
        ("patient,subject,KL", "'patient', 'subject' may all be the patient"),
        ("patient,side,score", "which column is the grade"),
        ("who,side,KL", "which column names the image, or the patient"),
        ("file,KL_left,KL_right", "a row has the grades of two knees but names one image"),
        ("patient,side,KL,KL", "'KL', 'KL' may all be the grade"),
    ],
)
def test_columns_that_cannot_be_told_are_asked_for(tmp_path, header, told):
    path = csv_sheet(tmp_path, header, ",".join("1" for _ in header.split(",")))
    with pytest.raises(UserError, match="--column") as caught:
        read_sheet(path, KL)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([["patient", "side", "KL"], [1, "L", 2], [None, "R", 3]], "row 3: has a grade but names neither"),
        ([["patient", "KL", None], [None, "left", "right"], [1, 2, 3]], "row 2: has a grade but names neither"),
        ([["file", "KL"], [None, 0], ["a.png", 1]], "row 2: has a grade but names neither"),
    ],
)
def test_a_grade_of_nobody_is_refused(tmp_path, rows, told):
    """Of merged cells only the first has the text."""
    path = excel_sheet(tmp_path, *rows)
    with pytest.raises(Faults, match=told):
        read_sheet(path, KL)


@pytest.mark.parametrize(("line", "number"), [("1,L,62,3,1,painful,", 7), ("1,L,3,2", 4)])
def test_rows_of_more_or_fewer_fields_than_the_header(tmp_path, line, number):
    """A separator within a field, or a forgotten one, moves the fields after it into other columns."""
    for only in ({}, {"patient": "2"}):
        with pytest.raises(Faults, match=f"row 2: {number} fields, but the header has 5") as caught:
            read_sheet(csv_sheet(tmp_path, "patient,side,age,KL,note", line, "2,L,62,1,,,"), KL, only=only)
        assert "row 3" not in str(caught.value)
    assert read_sheet(csv_sheet(tmp_path, "patient,side,KL,", "2,L,1"), KL).entries[0].grade == 1
    path = excel_sheet(tmp_path, ["patient", "KL"], [2, 1, "an aside"])
    assert read_sheet(path, KL).entries[0].grade == 1


def test_a_title_above_the_header_of_a_csv_file(tmp_path):
    path = csv_sheet(tmp_path, "Befunde 2024", "", "patient;side;KL", "1;L;2,5", "1;R;2")
    with pytest.raises(Faults, match="row 4: grade '2,5'"):
        read_sheet(path, KL)
    assert facts(read_sheet(path, KL, only={"side": "R"})) == [(5, "", "1", "R", 2)]


def test_named_columns_come_first(tmp_path):
    path = csv_sheet(tmp_path, "who,which,score,KL,file", "7,L,3,0,a.png")
    named = {"patient": "who", "side": "WHICH", "grade": "score", "image": ""}
    assert facts(read_sheet(path, KL, columns=named)) == [(2, "", "7", "L", 3)]
    wide = read_sheet(csv_sheet(tmp_path, "id,KL,l2,r2", "7,0,1,2"), KL, columns={"grade_L": "l2", "grade_R": "r2"})
    assert [(entry.side, entry.grade) for entry in wide.entries] == [("L", 1), ("R", 2)]
    with pytest.raises(UserError, match="has no column 'nobody'; there are who, which"):
        read_sheet(csv_sheet(tmp_path, "who,which", "1,2"), KL, columns={"patient": "nobody"})
    with pytest.raises(UserError, match="--column age=…: a column is one of image, patient"):
        read_sheet(path, KL, columns={"age": "who"})
    with pytest.raises(UserError, match="has 2 columns 'KL', so rename one"):
        read_sheet(csv_sheet(tmp_path, "id,KL,KL", "7,1,2"), KL, columns={"grade": "KL"})


def test_columns_said_to_be_none_leave_the_others(tmp_path):
    path = csv_sheet(tmp_path, "id,knee,KL,KL_left,KL_right", "7,2,0,1,2")
    sheet = read_sheet(path, KL, columns={"grade": "", "side": ""})
    assert sheet.columns == {"patient": "id", "grade_L": "KL_left", "grade_R": "KL_right"}
    with pytest.raises(
        UserError, match="both 'grade' and a grade of one side; write either 'grade', or 'grade_L' and 'grade_R'"
    ):
        read_sheet(path, KL, columns={"grade": "KL", "grade_L": "KL_left"})


def test_grades_of_another_set_are_not_looked_for_in_a_column_of_kl(tmp_path):
    cartilage = load_grade_set("cartilage")
    for header in ("patient,side,KL,cartilage", "patient,side,V00XRKL,cartilage", "patient,KL_left,KL_right,cartilage"):
        path = csv_sheet(tmp_path, header, "1,L,2,0")
        with pytest.raises(UserError, match="which column is the grade"):
            read_sheet(path, cartilage)
    path = csv_sheet(tmp_path, "patient,side,KL,grade", "1,L,2,0")
    assert read_sheet(path, cartilage).columns["grade"] == "grade"


def test_a_number_beside_the_images_is_no_patient(tmp_path):
    """Rows numbered 1 to N would make every image a patient of its own, and leak."""
    assert read_sheet(csv_sheet(tmp_path, "id,file,KL", "1,7_L.png,2"), KL).columns == {"image": "file", "grade": "KL"}
    assert read_sheet(csv_sheet(tmp_path, "id,KL", "1,2"), KL).columns == {"patient": "id", "grade": "KL"}


def test_two_grades_of_one_knee_are_refused_one_said_twice_is_not(tmp_path):
    touch(tmp_path, *KNEES)
    lines = ["ID|SIDE|READPRJ|KL", "9001|L|15|2", "9001|L|37|3", "9002|R|15|1", "9002|R|37|1", "9002|R|42|."]
    told = refusal(tmp_path, csv_sheet(tmp_path, *lines))
    assert "rows 2 and 3: patient '9001', side L has the grades 2 and 3" in told
    assert "9002" not in told
    assert grades(tmp_path, csv_sheet(tmp_path, *lines), only={"READPRJ": "37"}) == {
        "9001_L.png": 3,
        "9001_R.png": None,
        "9002_L.png": None,
        "9002_R.png": 1,
    }
    assert "no row has '99' in the column 'READPRJ'; its values are '15', '37', '42'" in refusal(
        tmp_path, csv_sheet(tmp_path, *lines), only={"READPRJ": "99"}
    )


def test_one_grade_for_a_patient_is_not_given_to_both_knees(tmp_path):
    touch(tmp_path, *KNEES)
    path = csv_sheet(tmp_path, "patient,KL", "9001,2")
    assert "patient '9001' has images of both knees but only one grade" in refusal(tmp_path, path)
    (tmp_path / "images" / "9001_R.png").unlink()
    told = refusal(tmp_path, path)
    assert "patient '9001' has images of side L and a grade without a side" in told
    assert "--column 'side=' if a patient's grade is that of the knee in the image" in told
    assert grades(tmp_path, path, columns={"side": ""})["9001_L.png"] == 2


def test_the_grade_of_the_other_knee_by_a_side_of_another_name(tmp_path):
    touch(tmp_path, "9001_L.png")
    path = csv_sheet(tmp_path, "patient,Side (L/R),KL", "9001,R,4")
    assert "has images of side L and a grade without a side" in refusal(tmp_path, path)
    assert "no row matches" in refusal(tmp_path, path, columns={"side": "Side (L/R)"})


def test_an_image_of_no_side_takes_no_grade_from_a_sheet_of_sides(tmp_path):
    touch(tmp_path, "9001.png", "9002_L.png")
    path = csv_sheet(tmp_path, "patient,side,KL", "9001,L,2", "9002,L,3")
    assert grades(tmp_path, path) == {"9001.png": None, "9002_L.png": 3}
    assert "1 image ('9001.png' first) without a known side get no grade" in " ".join(
        joined(tmp_path, path).attrs["notes"]
    )


def test_zeros_at_the_front_of_a_number(tmp_path):
    touch(tmp_path, "007_L.png", "08_L.png", "008_L.png", "9_L.png")
    path = excel_sheet(tmp_path, ["patient", "side", "KL"], [7, "L", 1], [8, "L", 2], ["0009", "L", 3])
    assert grades(tmp_path, path) == {"007_L.png": 1, "008_L.png": None, "08_L.png": None, "9_L.png": 3}
    assert "2 patients matched without the leading zeros" in " ".join(joined(tmp_path, path).attrs["notes"])


@given(
    st.lists(st.text("0a17", min_size=1, max_size=4), unique=True),
    st.lists(st.text("0a17", min_size=1, max_size=4), unique=True),
)
def test_no_two_patients_are_taken_for_one(in_sheet, in_folder):
    found, padded = _as_written(in_sheet, in_folder)
    assert len(set(found.values())) == len(found)
    assert all(found[patient] == patient for patient in set(in_sheet) & set(in_folder))
    assert all(name.lstrip("0") == patient.lstrip("0") for patient, name in found.items())
    assert padded == sum(name != patient for patient, name in found.items())


def test_slices_of_a_knee_all_take_its_grade(tmp_path):
    touch(tmp_path, *(f"{patient}_L/slice{number}.png" for patient in ("P1", "P2") for number in range(3)))
    path = csv_sheet(tmp_path, "patient,side,KL", "P1,L,2", "P2,L,0")
    table = joined(tmp_path, path)
    assert table["grade"].tolist() == [2, 2, 2, 0, 0, 0]
    assert "2 knees with several images" in " ".join(table.attrs["notes"])


@pytest.mark.parametrize(
    "name",
    [
        "b/two.png",
        "B/TWO.PNG",
        "b/two",
        "two.png",
        "two",
        "b\\two.png",
        "./b/two.png",
        "D:\\study\\b\\two.png",
        "/old/b/two.dcm",
    ],
)
def test_how_a_row_may_name_an_image(tmp_path, name):
    touch(tmp_path, "a/one.png", "b/two.png")
    assert grades(tmp_path, csv_sheet(tmp_path, "file name,KL", f"{name},3")) == {"a/one.png": None, "b/two.png": 3}


ONE, TWO = "M\u00fcller", "Mu\u0308ller"
"""One name as most programs store it, and as macOS does."""


@pytest.mark.parametrize(("in_sheet", "in_folder"), [(ONE, TWO), (TWO, ONE)])
def test_names_stored_in_two_ways_are_joined(tmp_path, in_sheet, in_folder):
    touch(tmp_path, f"a/{in_folder}_L.png")
    found = {f"a/{in_folder}_L.png": 3}
    assert grades(tmp_path, csv_sheet(tmp_path, "file,KL", f"A/{in_sheet}_L.png,3", f"{in_sheet}_l,3")) == found
    assert grades(tmp_path, csv_sheet(tmp_path, "patient,side,KL", f"{in_sheet},L,3")) == found


def test_a_patient_in_two_ways_in_one_sheet_is_one(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    path = csv_sheet(tmp_path, "file,patient,KL", f"1.png,{ONE},3", f"2.png,{TWO},0")
    assert joined(tmp_path, path)["patient"].tolist() == [ONE, ONE]
    twice = csv_sheet(tmp_path, "patient,side,KL", f"{ONE},L,3", f"{TWO},L,0")
    with pytest.raises(Faults, match=f"rows 2 and 3: patient '{ONE}', side L has the grades 3 and 0"):
        joined(tmp_path, twice)


def test_images_that_differ_in_how_a_name_is_stored_are_told_apart_as_written(tmp_path):
    touch(tmp_path, f"{ONE}.png", f"{TWO}.png")
    path = csv_sheet(tmp_path, "file,KL", f"{ONE}.png,3", f"{TWO}.png,0")
    assert grades(tmp_path, path) == {f"{ONE}.png": 3, f"{TWO}.png": 0}
    with pytest.raises(Faults, match="may be"):
        joined(tmp_path, csv_sheet(tmp_path, "file,KL", f"{ONE},3"))


def test_a_name_that_fits_two_images_needs_its_folder(tmp_path):
    touch(tmp_path, "P1/knee.png", "P2/knee.png")
    told = refusal(tmp_path, csv_sheet(tmp_path, "image,KL", "knee.png,3"))
    assert "row 2: 'knee.png' may be 'P1/knee.png', 'P2/knee.png'" in told
    path = csv_sheet(tmp_path, "image,KL", "P2/knee.png,3", "C:/all/P1/knee.png,1")
    assert grades(tmp_path, path) == {"P1/knee.png": 1, "P2/knee.png": 3}


def test_a_name_in_another_folder_is_another_image(tmp_path):
    touch(tmp_path, "P1/a_L.png", "P2/knee.png")
    told = refusal(tmp_path, csv_sheet(tmp_path, "image,KL", "P1/knee.png,3"))
    assert "it has 'P1/knee.png', the folder has 'P1/a_L.png'; name images by their path in the folder" in told
    touch(tmp_path, "a.png")
    told = refusal(tmp_path, csv_sheet(tmp_path, "image,KL", "P8/a.png,3", "P9/a.png,3", "P8/a,3"))
    assert "row 3: 'P9/a.png' and 'P8/a.png' both match 'a.png'" in told


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("A.png", {"A.png"}),
        ("a.png", {"a.png"}),
        ("a", {"A.png", "a.png"}),
        ("two.png", {"two.png"}),
        ("two.jpg", {"b/two.jpg"}),
        ("old/b/two.png", {"two.png"}),
        ("b/two", {"b/two.jpg"}),
        ("three.dcm", {"b/three.png", "c/three.png"}),
        ("C/three.dcm", {"c/three.png"}),
        ("d/three.png", set()),
        ("", set()),
    ],
)
def test_which_images_a_name_fits(name, images):
    known = ["A.png", "a.png", "two.png", "b/two.jpg", "b/three.png", "c/three.png"]
    assert set(_images_named([name], known)[name]) == images


def test_patients_and_sides_of_the_sheet_come_first_where_it_names_images(tmp_path):
    touch(tmp_path, "slice1.png", "slice2.png", "slice3.png")
    lines = ["image,patient,side,KL", "slice1.png,007,L,2", "slice2.png,007,R,3", "slice3.png,8,,"]
    table = joined(tmp_path, csv_sheet(tmp_path, *lines))
    assert table["patient"].tolist() == ["007", "007", "8"]
    assert table["side"].tolist() == ["L", "R", ""]
    assert numbers(table["grade"]) == [2, 3, None]
    # Without its row, 'slice3' is nobody's, and refused as ever.
    assert "slice3.png: neither the name 'slice3'" in refusal(tmp_path, csv_sheet(tmp_path, *lines[:3]))


def test_one_person_under_two_names_is_refused(tmp_path):
    """Excel drops the zeros of '007'; the other knee, of no row, would be another patient's."""
    touch(tmp_path, "007_L.png", "007_R.png")
    path = excel_sheet(tmp_path, ["file", "patient", "KL"], ["007_L.png", 7, 2])
    told = refusal(tmp_path, path)
    assert (
        "007_L.png: is listed as patient '7', but its name or header gives '007', and '007_R.png', which is not listed"
        in told
    )
    assert joined(tmp_path, path, columns={"patient": ""})["patient"].tolist() == ["007", "007"]
    path = excel_sheet(tmp_path, ["file", "patient", "KL"], ["007_L.png", "007", 2])
    assert joined(tmp_path, path)["patient"].tolist() == ["007", "007"]
    path = excel_sheet(tmp_path, ["file", "patient", "KL"], ["007_L.png", "007", 2], ["007_R.png", 7, 3])
    assert "rows 2 and 3: patients '007', '7', one person or two?" in refusal(tmp_path, path)


def test_rows_of_one_image_that_contradict_each_other(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    lines = ["image,patient,side,KL", "a.png,7,L,2", "a.png,8,L,2", "b.png,9,L,1", "b.png,9,R,0"]
    told = refusal(tmp_path, csv_sheet(tmp_path, *lines))
    assert "rows 2 and 3: 'a.png' has another patient in each (7 and 8)" in told
    assert "rows 4 and 5: 'b.png' has another side in each (L and R)" in told
    assert "rows 4 and 5: 'b.png' has another grade in each (1 and 0)" in told


def test_a_side_or_grade_that_the_folder_contradicts(tmp_path):
    touch(tmp_path, "2/9001_L.png", "2/9002_L.png", "3/9003_L.png")
    told = refusal(tmp_path, csv_sheet(tmp_path, "image,side,KL", "9001_L.png,R,2"))
    assert "9001_L.png: is listed as side R, but its name or header gives L" in told
    told = refusal(tmp_path, csv_sheet(tmp_path, "patient,side,KL", "9001,L,2", "9002,L,1"))
    assert "2/9002_L.png: is in the folder of grade 2, but row 3 of the sheet has 1" in told
    assert "9001" not in told
    assert list(grades(tmp_path, csv_sheet(tmp_path, "patient,side,KL", "9001,L,2")).values()) == [2, 2, 3]


def test_a_sheet_that_fits_no_image_says_what_both_have(tmp_path):
    touch(tmp_path, "IM1_L.png")
    told = refusal(tmp_path, csv_sheet(tmp_path, "patient,side,KL", "9001,R,2"))
    assert "it has patient '9001', side R, the folder has patient 'IM1', side L ('IM1_L.png')" in told
    assert "it has '9001.png', the folder has 'IM1_L.png'" in refusal(
        tmp_path, csv_sheet(tmp_path, "image,KL", "9001.png,2")
    )
    assert "no row names an image; --column 'image=' matches by patient" in refusal(
        tmp_path, csv_sheet(tmp_path, "patient,file,KL", "9001,,2")
    )


def test_several_sheets_are_asked_for(tmp_path):
    rows = [["patient", "side", "KL"], [1, "L", 2]]
    path = excel_sheet(tmp_path, *rows, more={"second": [["patient", "side", "KL"], [1, "L", 4]]})
    with pytest.raises(UserError, match="has the sheets 'Sheet', 'second'; write one of them after --sheet"):
        read_sheet(path, KL)
    assert read_sheet(path, KL, name="second").entries[0].grade == 4
    with pytest.raises(UserError, match="has no sheet 'third'"):
        read_sheet(path, KL, name="third")
    with pytest.raises(UserError, match="has no sheets; leave out --sheet"):
        read_sheet(csv_sheet(tmp_path, "patient,KL", "1,2"), KL, name="one")


@pytest.mark.parametrize("rows", [[], [["KL grades"]], [["patient", "KL"]], [["patient", "KL"], ["", ""]]])
def test_sheets_without_rows(tmp_path, rows):
    with pytest.raises(UserError, match=r"has no row of two columns|has a header and no rows"):
        read_sheet(excel_sheet(tmp_path, *rows), KL)


def test_only_excel_and_csv_are_read(tmp_path):
    for suffix in (".ods", ".xls"):
        (tmp_path / f"grades{suffix}").write_bytes(b"PK")
        with pytest.raises(UserError, match=f"{suffix} files are not read; save it as .xlsx or as 'CSV UTF-8'"):
            read_sheet(tmp_path / f"grades{suffix}", KL)


def test_a_wide_csv_is_read_in_linear_time(tmp_path):
    titles = ["patient", "side", "KL", *(f"column {number}" for number in range(60_000))]
    path = csv_sheet(tmp_path, ",".join(titles), ",".join(["1", "L", "2", *"7" * 60_000]))
    start = time.process_time()
    assert facts(read_sheet(path, KL)) == [(2, "", "1", "L", 2)]
    with pytest.raises(UserError, match="has 60,003 columns, more than 5,000"):
        read_manifest(path, KL)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["7" * 5000, "2" + "0" * 5000 + ".0", "-" + "1" * 5000])
def test_a_grade_of_thousands_of_digits_is_refused(tmp_path, text):
    with pytest.raises(Faults, match="grade '"):
        read_sheet(csv_sheet(tmp_path, "patient,side,KL", f"1,L,{text}"), KL)
