"""Which column of a spreadsheet is the image, patient, side and grade."""

import pytest

from knee.errors import UserError
from knee.grades import load_grade_set
from knee.intake.sheet import read_sheet

from .sheets import KL, csv_sheet, facts


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
def test_ambiguous_and_missing_columns_are_refused_with_the_option(tmp_path, header, told):
    path = csv_sheet(tmp_path, header, ",".join("1" for _ in header.split(",")))
    with pytest.raises(UserError, match="--column") as caught:
        read_sheet(path, KL)
    assert told in str(caught.value)


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


def test_columns_given_as_empty_are_not_used(tmp_path):
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


def test_a_row_number_next_to_image_names_is_not_a_patient(tmp_path):
    """Rows numbered 1 to N would make every image a patient of its own, and leak."""
    assert read_sheet(csv_sheet(tmp_path, "id,file,KL", "1,7_L.png,2"), KL).columns == {"image": "file", "grade": "KL"}
    assert read_sheet(csv_sheet(tmp_path, "id,KL", "1,2"), KL).columns == {"patient": "id", "grade": "KL"}
