"""Fields of a spreadsheet's row: values with their labels, errors and formulas, patients with a side, splits."""

import pytest

from knee.errors import Faults
from knee.grades import load_grade_set
from knee.intake.sheet import read_sheet

KL = load_grade_set("kl")


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        *[
            ("2: 2", 2),
            ("2:2", 2),
            ("2: Minimal", 2),
            ("3 : Moderate", 3),
            ("0: 0", 0),
            ("4: severe", 4),
            ("1=Doubtful", 1),
        ],
        *[(".: Missing", None), (".: Missing Form/Incomplete Workbook", None), (".A: Not expected", None)],
    ],
)
def test_a_value_with_its_label(study, text, grade):
    assert [entry.grade for entry in read_sheet(study.csv("patient|side|KL", f"1|L|{text}"), KL).entries] == [grade]


@pytest.mark.parametrize("text", ["2: 3", "2: severe", "7: 7", "5: Severe"])
def test_a_value_that_contradicts_its_label_or_the_scale(study, text):
    with pytest.raises(Faults, match="row 2: grade"):
        read_sheet(study.csv("patient|side|KL", f"1|L|{text}"), KL)


@pytest.mark.parametrize("error", ["#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!"])
@pytest.mark.parametrize(("place", "cell"), [(0, "A3"), (1, "B3"), (2, "C3")])
def test_an_error_is_refused_by_its_cell(study, error, place, cell, option):
    row = ["9001", "L", "2"]
    row[place] = error
    path = study.csv("ID,SIDE,KL", "9000,L,1", ",".join(row))
    with pytest.raises(Faults, match=f"in cell {cell} is the error {error.replace('?', '[?]')}") as caught:
        read_sheet(path, KL)
    if place == 2:
        (missing,) = option(str(caught.value).replace(" takes it", "\n"), "--missing")
        assert [entry.grade for entry in read_sheet(path, KL, missing=[missing]).entries] == [1, None]


def test_a_formula_without_a_result_is_refused_by_its_cell(study):
    path = study.excel(["ID", "SIDE", "KL", "note"], [9001, "L", "=1+1", "=2"], [9001, "R", 2, "=A1"])
    with pytest.raises(Faults, match=r"row 2: the grade in cell C2 is a formula without a result \(=1\+1\)") as caught:
        read_sheet(path, KL)
    assert "row 3" not in str(caught.value)


@pytest.mark.parametrize("column", ["side", "other"])
def test_a_side_at_the_end_of_the_patient_is_the_side(study, column):
    study.draw("9001695_L.png", "9001695_R.png")
    rows = ["9001695L,L,2", "9001695R,R,3"] if column == "side" else ["9001695L,,2", "9001695R,,3"]
    path = study.csv(f"patient_id,{column},KL", *rows)
    assert study.grades(path) == {"9001695_L.png": 2, "9001695_R.png": 3}
    assert study.column("patient", path) == {"9001695_L.png": "9001695", "9001695_R.png": "9001695"}


def test_a_patient_with_a_side_in_a_sheet_of_images_is_the_same_as_by_name(study):
    study.draw("9001695L.png", "9001695R.png")
    path = study.csv("file,patient_id,KL", "9001695L.png,9001695L,2")
    assert set(study.column("patient", path).values()) == {"9001695"}


def test_a_patient_of_another_side_than_the_column_says(study):
    with pytest.raises(Faults, match="row 2: patient '9001L' ends with side L, but the side is R"):
        read_sheet(study.csv("patient,side,KL", "9001L,R,2"), KL)


def test_a_split_is_kept_or_refused(study, option):
    study.draw("1_L.png", "2_L.png", "3_L.png")
    path = study.csv("file,KL,split", "1_L.png,2,Training", "2_L.png,,test", "3_L.png,1,valid")
    assert list(study.column("split", path).values()) == ["train", "test", "val"]
    by_knee = study.csv("patient,side,KL,split", "1,L,2,train", "2,L,,test")
    assert list(study.column("split", by_knee).values()) == ["train", "test", ""]
    path = study.csv("file,KL,split", "1_L.png,2,fold 3")
    message = study.refusal(path)
    assert "split 'fold 3' is not train, val or test" in message
    assert option(message, "--column") == ["split="]
    assert study.grades(path, columns={"split": ""})["1_L.png"] == 2
    assert "split" not in study.table(path, columns={"split": ""})


def test_a_split_that_parts_a_patient_or_contradicts_the_folder_is_refused(study):
    study.draw("train/1_L.png", "train/1_R.png")
    path = study.csv("patient,side,KL,split", "1,L,2,train", "1,R,2,test")
    assert "rows 2 and 3: '1' is in the splits train and test" in study.refusal(path)
    path = study.csv("patient,side,KL,split", "1,L,2,test", "1,R,2,test")
    assert "train/1_L.png: is in the folder of split train, but the sheet has test" in study.refusal(path)
