"""JPEG files: trailing bytes, missing data, truncation."""

import numpy as np
import pytest

from knee.errors import UserError
from knee.images.read import read_pixels

from .samples import GREY, RNG, pillow_bytes, written


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("after", [b"\r\n", b"\xff" * 40, b"\xff\xd9", bytes(range(256)), b"PK\3\4" + bytes(9) + b"x"])
def test_bytes_after_a_jpeg_are_a_remark(tmp_path, after, progressive):
    data = pillow_bytes(GREY, "JPEG", progressive=progressive)
    whole = read_pixels(written(tmp_path, "a.jpg", data))
    found = read_pixels(written(tmp_path, "a.jpg", data + after))
    np.testing.assert_array_equal(found.values, whole.values)
    assert whole.remarks == ()
    assert ["after the end of the JPEG" in remark for remark in found.remarks] == [True]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 60}])
def test_a_grey_corner_is_read_and_missing_data_are_refused(tmp_path, options):
    image = np.tile(GREY, (2, 2))
    image[-24:, -24:] = 128
    data = pillow_bytes(image, "JPEG", **options)
    found = read_pixels(written(tmp_path, "a.jpg", data)).values
    assert (found[-8:, -8:] == 128).all(), "the corner is what a decoder fills in for missing data"
    if options in ({}, {"quality": 60}):
        for lost in RNG.integers(100, len(data) // 3, 6).tolist():
            with pytest.raises(UserError, match="JPEG"):
                read_pixels(written(tmp_path, "b.jpg", data[:-lost].rstrip(b"\xff") + b"\xff\xd9"))


def test_zeros_after_a_jpeg_are_padding_and_do_not_make_a_truncated_one_whole(tmp_path):
    data = pillow_bytes(GREY, "JPEG")
    whole = read_pixels(written(tmp_path, "a.jpg", data)).values
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "a.jpg", data + bytes(4096))).values, whole)
    for truncated in (data[:-20], data[:-2]):
        for after in (bytes(4096), bytes(range(1, 201)), b"\r\n"):
            with pytest.raises(UserError, match="JPEG"):
                read_pixels(written(tmp_path, "a.jpg", truncated + after))
