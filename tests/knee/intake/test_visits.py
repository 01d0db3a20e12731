"""Visits: a grade goes to the images of its own visit, or is refused."""

import pytest

from knee.data.strata import make_split

KNEES = [f"{visit}/9001_{side}.dcm" for visit in ("V00", "V03") for side in "LR"]


def two_visits(study, *names, dates=("20040510", "20070612")):
    for place, name in enumerate(names or KNEES):
        date = dates[place * len(dates) // len(names or KNEES)]
        study.draw_dicom(name, PatientID="9001", ImageLaterality=name[-5], StudyDate=date)


def test_a_baseline_column_grades_the_baseline_images(study):
    two_visits(study)
    path = study.csv("ID,SIDE,V00XRKL", "9001,R,1", "9001,L,0")
    assert list(study.grades(path).values()) == [0, 1, None, None]
    assert list(study.column("visit", path).values()) == ["0 months"] * 2 + ["24 months"] * 2
    split = make_split(study.table(path), seed=0)
    assert split["split"].nunique() == 1


def test_the_column_of_another_visit_fits_no_image(study):
    two_visits(study)
    path = study.csv("ID,SIDE,V06XRKL", "9001,R,1")
    assert "it has patient '9001', side R, visit 48 months" in study.refusal(path)


@pytest.mark.parametrize("first", ["V00", "baseline", "0m", "0 months"])
@pytest.mark.parametrize("second", ["V03", "24 months"])
def test_a_row_a_visit_by_label(study, first, second):
    two_visits(study)
    path = study.csv("ID,SIDE,visit,KL", f"9001,L,{first},1", f"9001,L,{second},3", f"9001,R,{second},2")
    assert list(study.grades(path).values()) == [1, None, 3, 2]


@pytest.mark.parametrize("dates", [("20040510", "20070612"), ("2004-05-10", "2007-06-12")])
def test_a_row_a_visit_by_date(study, dates):
    two_visits(study, "a_L.dcm", "b_L.dcm")
    path = study.csv("ID,SIDE,StudyDate,KL", f"9001,L,{dates[0]},1", f"9001,L,{dates[1]},3")
    assert study.grades(path) == {"a_L.dcm": 1, "b_L.dcm": 3}


@pytest.mark.parametrize("names", [("a_L.dcm", "b_L.dcm"), ("V00/a_L.dcm", "V03/b_L.dcm")])
def test_one_grade_for_images_of_two_visits_is_refused_until_it_is_said_to_be_of_both(study, names, option):
    two_visits(study, *names)
    path = study.csv("ID,SIDE,KL", "9001,L,2")
    message = study.refusal(path)
    assert "patient '9001', side L has images of visits" in message
    assert option(message, "--column") == ["visit=NAME", "visit="]
    assert list(study.grades(path, columns={"visit": ""}).values()) == [2, 2]


def test_several_images_of_one_visit_take_the_grade(study):
    two_visits(study, "a_L.dcm", "b_L.dcm", dates=("20040510",))
    path = study.csv("ID,SIDE,KL", "9001,L,2")
    assert list(study.grades(path).values()) == [2, 2]
    assert "visit" not in study.table(path)


def test_visits_of_a_sheet_do_not_matter_where_the_images_have_none(study):
    study.draw("9001_L.png")
    assert study.grades(study.csv("ID,SIDE,V00XRKL", "9001,L,2")) == {"9001_L.png": 2}
    assert study.grades(study.csv("ID,SIDE,visit,KL", "9001,L,a,2")) == {"9001_L.png": 2}
