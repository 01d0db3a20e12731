"""Rows of a spreadsheet joined with images: each knee gets its own grade, anything ambiguous is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.errors import Faults
from knee.intake.sheet_join import _as_written, _images_named

from .sheets import KNEES, ONE, TWO, csv_sheet, excel_sheet, grades, joined, numbers, refusal, touch


def test_two_grades_of_one_knee_are_refused_a_repeated_one_is_not(tmp_path):
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


def test_the_grade_of_the_other_knee_by_a_side_column_of_another_name(tmp_path):
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


def test_images_whose_names_differ_only_in_encoding_are_distinguished_as_written(tmp_path):
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


def test_a_sheet_that_fits_no_image_lists_what_both_have(tmp_path):
    touch(tmp_path, "IM1_L.png")
    told = refusal(tmp_path, csv_sheet(tmp_path, "patient,side,KL", "9001,R,2"))
    assert "it has patient '9001', side R, the folder has patient 'IM1', side L ('IM1_L.png')" in told
    assert "it has '9001.png', the folder has 'IM1_L.png'" in refusal(
        tmp_path, csv_sheet(tmp_path, "image,KL", "9001.png,2")
    )
    assert "no row names an image; --column 'image=' matches by patient" in refusal(
        tmp_path, csv_sheet(tmp_path, "patient,file,KL", "9001,,2")
    )


def test_reports_and_further_columns_are_joined_like_grades(tmp_path):
    touch(tmp_path, *KNEES)
    lines = ["ID,SIDE,KL,age,note", '9001,L,2,61,"Narrow, medial"', "9001,R,,61,Normal", "9002,L,1,,"]
    table = joined(tmp_path, csv_sheet(tmp_path, *lines), report="note", table=["age"])
    found = {row["image"]: (row["report"], row["age"]) for row in table.to_dict("records")}
    assert found == {
        "9001_L.png": ("Narrow, medial", "61"),
        "9001_R.png": ("Normal", "61"),
        "9002_L.png": ("", ""),
        "9002_R.png": ("", ""),
    }


def test_a_sheet_of_reports_needs_no_grade(tmp_path):
    touch(tmp_path, *KNEES)
    path = csv_sheet(tmp_path, "file,note", "9001_L.png,Narrow", "9002_R.png,Normal")
    assert "--column 'grade=' for a sheet of reports" in refusal(tmp_path, path, report="note")
    table = joined(tmp_path, path, report="note", columns={"grade": ""})
    assert table["report"].tolist() == ["Narrow", "", "", "Normal"]
    assert table["grade"].isna().all()
    assert "which column is the grade?" in refusal(tmp_path, path, columns={"grade": ""})


def test_two_reports_of_one_knee_are_refused(tmp_path):
    touch(tmp_path, *KNEES)
    path = csv_sheet(tmp_path, "patient,side,KL,note", "9001,L,2,Narrow", "9001,L,2,Wide", "9001,R,1,")
    told = refusal(tmp_path, path, report="note")
    assert "rows 2 and 3: two different texts in the columns 'report' for '9001', 'L'; keep one row" in told
    assert "Narrow" not in told


@pytest.mark.parametrize("name", ["KL", "JSN medial", "osteophytes"])
def test_grades_are_refused_as_further_columns(tmp_path, name):
    touch(tmp_path, *KNEES)
    path = csv_sheet(tmp_path, "patient,side,KL,JSN medial,osteophytes", "9001,L,2,1,1")
    assert "is no input" in refusal(tmp_path, path, table=[name])


def test_names_of_the_manifest_are_refused_as_further_columns(tmp_path):
    touch(tmp_path, *KNEES)
    path = csv_sheet(tmp_path, "patient,side,KL,mask", "9001,L,2,1")
    assert "the manifest has a column of this name" in refusal(tmp_path, path, table=["mask"])
