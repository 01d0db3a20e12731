"""Folders of grades: read only where they can be nothing else, and asked about otherwise."""

import pytest

from knee.errors import UserError
from knee.grades import load_grade_set
from knee.intake.folders import manifest_from_folder
from knee.intake.grade_folders import Scale

from .samples import touch

KL_WORDS = ["Normal", "Doubtful", "Mild", "Moderate", "Severe"]


@pytest.mark.parametrize(
    "names",
    [
        [str(grade) for grade in range(5)],
        [f"{grade}{word}" for grade, word in enumerate(KL_WORDS)],
        [f"{grade} - {word.lower()}" for grade, word in enumerate(KL_WORDS)],
        [f"KL{grade}" for grade in range(5)],
        [f"kl_{grade}" for grade in range(5)],
        [f"grade_{grade}" for grade in range(5)],
        [f"Grade {grade}" for grade in range(5)],
        [f"KL-Grade {grade}" for grade in range(5)],
        ["none", "Doubtful", "mild", "moderate", "severe"],
    ],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_usual_spellings_of_grades(study, names, split):
    study.draw(*(f"{split}{name}/{100 + grade}_L.png" for grade, name in enumerate(names)))
    assert list(study.grades().values()) == sorted(study.grades().values()) or names[0] == "none"
    assert study.grades() == {f"{split}{name}/{100 + grade}_L.png": grade for grade, name in enumerate(names)}


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (["01"], "'01' has a zero at the front"),
        (["01", "02", "03", "04"], "'01' has a zero at the front"),
        (["3"], "there is only one"),
        (["1", "2", "A7", "B8", "C9"], "next to 'A7'"),
    ],
)
def test_numbers_that_may_be_patients_are_asked_about_and_both_answers_work(study, folders, reason, option):
    study.draw(*(f"{folder}/{folder}{number}_L.png" for folder in folders for number in (11, 12)))
    message = study.refusal()
    assert reason in message
    assert option(message, "--layout") == ["tree", "plain"]
    numbers = [folder for folder in folders if folder.isdecimal()]
    assert set(study.grades(layout="tree").values()) - {None} == {int(folder) for folder in numbers}
    assert set(study.grades(layout="plain").values()) == {None}


def test_a_number_beyond_the_scale_is_not_a_grade(study, option):
    study.draw("1/1_L.png", "2/2_L.png", "17/3_L.png")
    message = study.refusal()
    assert "'17' is not a grade from 0 to 4" in message
    assert option(message, "--layout") == ["plain"]
    assert set(study.grades(layout="plain").values()) == {None}
    assert "'17' is not a grade from 0 to 4" in study.refusal(layout="tree")


def test_one_grade_next_to_ungraded_images_is_a_grade(study):
    study.draw("2/1_L.png", "ungraded/2_L.png")
    assert study.grades() == {"2/1_L.png": 2, "ungraded/2_L.png": None}


@pytest.mark.parametrize(("name", "reason"), [("KL7", "not a grade from 0 to 4"), ("3 mild", "name of grade 2")])
def test_a_spelling_that_contradicts_itself_or_the_scale_is_refused(study, name, reason, option):
    study.draw(f"{name}/1_L.png", "KL1/2_L.png")
    message = study.refusal()
    assert reason in message
    assert set(study.grades(layout=option(message, "--layout")[0]).values()) == {None}


@pytest.mark.parametrize("name", ["1st visit", "2L", "3months", "12", "k2", "grade", "2004"])
def test_other_names_are_not_grades(name):
    assert Scale(5, ("none",)).grade_of(name) is None


def test_a_grade_in_the_name_by_pattern(study):
    study.draw("7_L_KL2.png", "7_R_KL0.png", "8_L_KLx.png")
    pattern = r"(?P<patient>[0-9]+)_(?P<side>[LR])_KL(?P<grade>[0-9])?"
    assert study.grades(pattern=pattern) == {"7_L_KL2.png": 2, "7_R_KL0.png": 0, "8_L_KLx.png": None}
    study.draw("9_L_KL6.png")
    assert "9_L_KL6.png: '6' is not a grade from 0 to 4" in study.refusal(pattern=pattern)


def test_with_a_grade_by_pattern_folders_are_not_grades(study):
    study.draw("01/a_3.png", "02/b_2.png")
    pattern = r"(?P<patient>[0-9]+)/[a-z]_(?P<grade>[0-9])"
    table = study.table(pattern=pattern)
    assert table[["patient", "grade"]].values.tolist() == [["01", 3], ["02", 2]]


def test_a_pattern_of_grades_that_is_not_an_expression(study):
    study.draw("1.png")
    with pytest.raises(UserError, match="is not a regular expression"):
        study.table(pattern="(?P<grade>")


def test_grade_names_as_folders(tmp_path):
    touch(tmp_path, "Normal/1.png", "full-thickness/2.png")
    table = manifest_from_folder(tmp_path, grade_names=load_grade_set("cartilage").names)
    assert table["grade"].tolist() == [0, 2]
