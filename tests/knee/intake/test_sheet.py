"""Spreadsheets of grades: titles, rows, grades and sides are read, anything ambiguous is refused with a hint."""

import datetime
import time

import pytest

from knee.data.manifest import read_manifest
from knee.errors import Faults, UserError
from knee.intake.sheet import read_sheet

from .sheets import KL, KNEES, csv_sheet, excel_sheet, facts, grades, joined, touch


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


def test_a_sheet_of_most_has_a_row_a_patient_and_its_visit(tmp_path):
    path = csv_sheet(tmp_path, "MOSTID,V0XRKLL,V0XRKLR", "MB00001,2,0", "MB00002,.,4")
    sheet = read_sheet(path, KL)
    assert sheet.columns == {"patient": "MOSTID", "grade_L": "V0XRKLL", "grade_R": "V0XRKLR"}
    assert [(entry.patient, entry.side, entry.visit, entry.grade) for entry in sheet.entries] == [
        ("MB00001", "L", "v0", 2),
        ("MB00001", "R", "v0", 0),
        ("MB00002", "L", "v0", None),
        ("MB00002", "R", "v0", 4),
    ]
    mixed = csv_sheet(tmp_path, "MOSTID,V0XRKLL,V1XRKLR", "MB00001,2,0")
    with pytest.raises(UserError, match="different visits"):
        read_sheet(mixed, KL)
    both = csv_sheet(tmp_path, "MOSTID,V0XRKLL,V0XRKLR,V1XRKLL,V1XRKLR", "MB00001,2,0,3,0")
    with pytest.raises(UserError, match=r"--column 'grade_L=V0XRKLL'"):
        read_sheet(both, KL)


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
def test_text_that_is_not_a_grade_is_refused_unless_declared_missing(tmp_path, text):
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


def test_a_graded_row_without_a_side_in_a_sheet_with_sides(tmp_path):
    path = csv_sheet(tmp_path, "patient,side,KL", "1,,2", "2,,", "3,L,1")
    with pytest.raises(Faults, match="row 2: the side is empty") as caught:
        read_sheet(path, KL)
    assert "row 3" not in str(caught.value)


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
