"""Files of the OAI by name: side 1 is right, values have labels, and of several readers one is preferred by a stated order."""

import pytest

from knee.errors import UserError
from knee.grades import load_grade_set
from knee.intake.sheet import read_sheet

KL = load_grade_set("kl")
HEADER = "ID|SIDE|READPRJ|V00XRKL"


def oai(study, *rows):
    return study.csv(HEADER, *rows, name="kxr_sq_bu00.txt")


@pytest.mark.parametrize(("right", "left"), [("1", "2"), ("1: Right", "2: Left")])
def test_side_1_is_right(study, right, left):
    study.draw("9001_L.png", "9001_R.png", "9002_L.png")
    path = oai(study, f"9001|{right}|15|3: 3", f"9001|{left}|15|0: 0", f"9002|{left}|15|.: Missing")
    assert study.grades(path) == {"9001_L.png": 0, "9001_R.png": 3, "9002_L.png": None}


@pytest.mark.parametrize("name", ["kxr_sq_bu00.txt", "renamed.csv"])
def test_sides_the_other_way_round_are_refused(study, name):
    path = study.csv(HEADER, "9001|1|15|3", name=name)
    with pytest.raises(UserError, match="side 1 is right and 2 is left; leave out --side 1=L"):
        read_sheet(path, KL, sides={"1": "L", "2": "R"})
    assert read_sheet(path, KL, sides={"1": "R", "2": "L"}).entries[0].side == "R"


def test_numbers_of_sides_elsewhere_are_not_guessed(study):
    with pytest.raises(UserError, match="--side '1=R'"):
        read_sheet(study.csv("ID,SIDE,KL", "9001,1,3"), KL)


def test_of_several_readers_one_is_preferred_by_the_order_that_the_refusal_prints(study, option):
    study.draw("9001_L.png", "9001_R.png")
    path = oai(study, "9001|1|15|3", "9001|1|37|2", "9001|2|37|1", "9001|2|42|1", "9001|2|15|.")
    message = study.refusal(path)
    assert "rows 2 and 3: patient '9001', side R" in message
    (prefer,) = option(message, "--prefer")
    column, _, order = prefer.partition("=")
    assert (column, order) == ("READPRJ", "15,37,42")
    assert study.grades(path, prefer={column: order.split(",")}) == {"9001_L.png": 1, "9001_R.png": 3}
    assert study.grades(path, prefer={column: ["37", "15"]}) == {"9001_L.png": 1, "9001_R.png": 2}


def test_readers_outside_the_order_come_last_and_may_still_contradict_each_other(study):
    study.draw("9001_R.png")
    path = oai(study, "9001|1|15|3", "9001|1|37|2")
    assert "side R" in study.refusal(path, prefer={"READPRJ": ["42"]})
    with pytest.raises(UserError, match="has no column 'READER'"):
        read_sheet(path, KL, prefer={"READER": ["42"]})
