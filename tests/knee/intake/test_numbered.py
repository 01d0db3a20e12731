"""Names that differ in a number or a side are one patient or asked about; what the question suggests works."""

import pytest

from knee.intake.numbered import base_name


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["9001_1", "9001_2", "9002_1"], ["9001", "9001", "9002"]),
        (["9001_L_1", "9001_L_2", "9001_R_1"], ["9001"] * 3),
        (["9001_1_L", "9001_2_L"], ["9001", "9001"]),
        (["9001L_1", "9001R_1"], ["9001", "9001"]),
        (["smith-1", "smith-2", "jones-1"], ["jones", "smith", "smith"]),
        (["knee a (1)", "knee a (2)"], ["knee a", "knee a"]),
        (["a_b_01", "a_b_02"], ["a_b", "a_b"]),
        (["7_L_V00", "7_L_V03"], ["7", "7"]),
    ],
)
def test_both_answers_to_the_question_work(study, names, patients, option):
    study.draw(*(f"{name}.png" for name in names))
    message = study.refusal()
    assert "one patient or two" in message
    pattern, by_file = option(message, "--pattern")
    assert study.table(pattern=pattern)["patient"].tolist() == patients
    assert by_file == "file"
    assert len(set(study.table(pattern="file")["patient"])) > len(set(patients))


def test_the_suggestion_keeps_the_sides(study, option):
    study.draw("7_L_1.png", "7_L_2.png", "7_R_1.png", "8_right_1.png")
    pattern = option(study.refusal(), "--pattern")[0]
    assert list(study.column("side", pattern=pattern).values()) == ["L", "L", "R", "R"]


@pytest.mark.parametrize(
    "names",
    [
        ["patient_1", "patient_2"],
        ["sub-01_L", "sub-02_L", "sub-02_R"],
        ["case 7", "case 8"],
        ["IM0001", "IM0002"],
        ["9001_L", "9001_R"],
        ["9001_2201", "9001_2202"],
    ],
)
def test_numbers_that_are_who_it_is_are_not_asked_about(study, names):
    study.draw(*(f"{name}.png" for name in names))
    assert len(study.table()) == len(names)


@pytest.mark.parametrize("name", ["1", "7_1", "L", "v1", "_1"])
def test_something_is_always_left(name):
    assert base_name(name)
