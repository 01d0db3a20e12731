"""Pictures of a case: enlarged by a whole factor, labelled, and outlined where the map exceeds the threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from knee.review.picture import case_picture, contour_lines


@pytest.mark.parametrize(("width", "factor"), [(60, 9), (256, 2), (512, 1), (1200, 1)])
def test_small_originals_are_enlarged_by_a_whole_factor(make_case, run, width: int, factor: int) -> None:
    grey = np.full((40, width), 120, np.uint8)
    found = case_picture(grey, np.zeros((40, width), np.float32), make_case(1), run, "teacher")
    assert found.factor == factor
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape[1] == width * factor
    assert found.pixels.shape[0] > 40 * factor, "with a legend below"
    assert (found.pixels[: 40 * factor] == 120).all(), "a map of zeros leaves the image as it is"


def test_each_network_and_the_evidence_have_lines_of_their_own(make_case, run) -> None:
    case = replace(make_case(1), evidence_against=2)
    grey = np.full((128, 128), 100, np.uint8)
    x = np.zeros((128, 128), np.float32)
    x[40:80, 40:80] = 1
    pictures = [case_picture(grey, x, case, run, name).pixels for name in ("student", "teacher", "evidence")]
    student, teacher, evidence = (picture[: 128 * 4] for picture in pictures)
    assert np.array_equal(student, teacher), "one map, one picture"
    assert not np.array_equal(teacher, evidence), "an evidence map has no contour"
    legends = [picture[128 * 4 :] for picture in pictures]
    assert not np.array_equal(legends[0], legends[1][: len(legends[0])])


def test_outlines_go_round_the_pixels_above_the_threshold_largest_first() -> None:
    x = np.zeros((20, 30), np.float32)
    x[2:5, 3:7] = 0.41
    x[10:19, 12:28] = 1
    x[7, 1] = 1  # a speck without an area
    x[0, 20:] = 0.4  # not above the threshold
    large, small = contour_lines(x)
    assert not large.is_hole and not small.is_hole
    for (line, _), (top, bottom, left, right) in ((large, (10, 19, 12, 28)), (small, (2, 5, 3, 7))):
        assert np.array_equal(line[0], line[-1])
        assert line.min(0).tolist() == [left + 0.5, top + 0.5]
        assert line.max(0).tolist() == [right - 0.5, bottom - 0.5]
    assert contour_lines(np.zeros((4, 4), np.float32)) == []
