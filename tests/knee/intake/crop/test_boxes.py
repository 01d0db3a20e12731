"""Arithmetic of crops in pixels and millimetres, and the rule for sides."""

import numpy as np
import pytest

from knee.images.joints import BOX_WIDTHS, KneeBox
from knee.intake.crop.boxes import LEAST_SURE, Box, knee_boxes, knee_sides, without_border


def knee(x: float, y: float = 199.5, width: float = 80.0, evidence: float = 3.0) -> KneeBox:
    return KneeBox(x, y, width, 1.0, evidence)


def test_a_crop_has_its_size_in_mm_where_the_spacing_is_known() -> None:
    (box,) = knee_boxes([knee(299.5)], (400, 600), (1.0, 1.0))
    assert box == Box(130, 230, 140, 140)
    (box,) = knee_boxes([knee(299.5)], (400, 600), (0.5, 1.0), size_mm=100)
    assert box == Box(100, 250, 200, 100)  # 100 mm either way


def test_without_spacing_or_with_an_impossible_one_the_size_follows_the_bones() -> None:
    expected = BOX_WIDTHS * 80
    for spacing in (None, (0.1, 0.1), (5.0, 5.0)):  # bones of 80 px would be 8 mm and 400 mm wide
        (box,) = knee_boxes([knee(299.5)], (400, 600), spacing)
        assert box == Box(round(200 - expected / 2), round(300 - expected / 2), expected, expected)
    (half,) = knee_boxes([knee(299.5)], (400, 600), None, size_mm=70)
    assert half.width == pytest.approx(expected / 2)


def test_a_crop_ends_at_the_film_and_half_way_to_the_other_knee() -> None:
    left, right = knee_boxes([knee(49.5, y=29.5), knee(149.5, y=29.5)], (400, 600), (1.0, 1.0))
    assert (left.top, left.height) == (0, 100)
    assert (left.left, left.left + left.width) == (0, 100)
    assert (right.left, right.left + right.width) == (100, 200)


def test_the_side_of_the_file_comes_before_the_anatomy() -> None:
    (side,) = knee_sides([knee(10)], "L")
    assert (side.side, side.origin, side.confidence) == ("L", "file", 1.0)
    (side,) = knee_sides([knee(10)], "")
    assert (side.side, side.origin) == ("R", "anatomy")
    assert side.confidence >= LEAST_SURE


def test_an_unclear_side_stays_empty() -> None:
    (side,) = knee_sides([knee(10, evidence=0.0)], "")
    assert (side.side, side.origin, side.confidence) == ("", "", 0.5)


def test_two_knees_have_both_sides_and_a_mirrored_film_the_other_ones() -> None:
    pair = [knee(100), knee(300, evidence=-3.0)]
    assert [side.side for side in knee_sides(pair, "")] == ["R", "L"]
    assert [side.side for side in knee_sides(pair, "L")] == ["R", "L"], "one side cannot be that of two knees"
    assert [side.side for side in knee_sides(pair, "", mirrored=True)] == ["L", "R"]


def test_a_border_of_one_grey_value_is_left_out() -> None:
    rng = np.random.default_rng(0)
    film = np.full((120, 150), 20.0)
    film[:, :40] = 5.0  # another band
    film += rng.normal(0, 0.2, film.shape)
    film[30:100, 40:140] = rng.uniform(0, 255, (70, 100))
    assert without_border(film, Box(10, 20, 110, 130)) == Box(30, 40, 70, 100)
    assert without_border(film, Box(40, 50, 30, 60)) == Box(40, 50, 30, 60)
    assert without_border(np.zeros((9, 9)), Box(1, 2, 5, 6)) == Box(1, 2, 5, 6)
