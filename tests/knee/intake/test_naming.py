"""Patient and side from names of files and folders."""

from __future__ import annotations

import pytest

from knee.errors import UserError
from knee.images.dicom import Subject
from knee.intake.naming import by_file, by_folder, names_nobody, placed, side_in_path, split_side


@pytest.mark.parametrize(
    ("name", "patient", "side"),
    [
        ("9001695L", "9001695", "L"),
        ("P7_right", "P7", "R"),
        ("P7-l", "P7", "L"),
        ("P7 Left", "P7", "L"),
        ("MILLER", "MILLER", ""),
        ("MILLER_R", "MILLER", "R"),
        ("007l", "007l", ""),
        ("left", "left", ""),
        ("_L", "_L", ""),
    ],
)
def test_a_side_counts_only_at_the_end_after_a_digit_or_a_separator(name: str, patient: str, side: str) -> None:
    assert split_side(name) == (patient, side)


def test_one_name_in_both_unicode_forms_is_one_patient() -> None:
    assert split_side("Mu\u0308ller_L") == split_side("M\u00fcller_L") == ("M\u00fcller", "L")


@pytest.mark.parametrize(
    ("path", "side"),
    [
        ("7/left_knee.png", "L"),
        ("slice07_L.png", "L"),
        ("7/R/2.png", "R"),
        ("P7_L/slice01.png", "L"),
        ("P7_L/scan of somebody.png", ""),
        ("left_right.png", "R"),
        ("knee.dcm", ""),
    ],
)
def test_side_of_the_file_then_of_its_folder(path: str, side: str) -> None:
    assert side_in_path(path) == side


def test_the_patient_is_the_file_or_the_folder_above_a_folder_of_a_side() -> None:
    image = placed("2/P7/left/slice01.png", ["P7", "left"])
    assert image.folders == ("P7",)
    assert names_nobody(image) and not names_nobody(placed("2/P7.png", []))
    assert by_folder(image) == Subject("P7", "L")
    assert by_file(placed("2/007_R.png", [])) == Subject("007", "R")
    with pytest.raises(UserError, match=r"2/left/1\.png: is not in a patient folder"):
        by_folder(placed("2/left/1.png", ["left"]))
