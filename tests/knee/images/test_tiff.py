"""TIFF: every number type is read exactly or refused by its kind."""

import struct

import numpy as np
import pytest

from knee.errors import UserError
from knee.images.read import read_pixels

from .samples import DEEP, GREY, pillow_bytes, tiff, written


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "f2", "u8", "i8"])
def test_tiff_numbers_are_read_as_they_are_or_refused_by_kind(tmp_path, kind, order, big):
    dtype = np.dtype(kind)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    ends = sorted(max(min(float(end), 3e9), -2e9) for end in (limits.min, limits.max))
    array = np.linspace(*ends, 30 * 20).reshape(20, 30).clip(*ends).astype(dtype)
    path = written(tmp_path, "a.tif", tiff(array, order=order, big=big))
    try:
        values = read_pixels(path).values
    except UserError as error:
        assert ("BigTIFF of big-endian numbers" if big and order == ">" else "-bit ") in str(error)
        assert "save it as" in str(error)
        assert order == ">" or kind not in ("u1", "i1", "u2", "i2", "u4", "i4", "f4")
        assert big or kind not in ("u1", "i1", "u2", "i4", "f4")
        return
    np.testing.assert_array_equal(values, array.astype(np.float32))


def test_deep_grey_is_exact(tmp_path):
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "a.tif", tiff(DEEP, big=True))).values, DEEP)


@pytest.mark.parametrize("array", [GREY, DEEP], ids=["8", "16"])
def test_tiff_white_is_zero_is_inverted_once(tmp_path, array):
    data = bytearray(pillow_bytes(array, "TIFF"))
    entry = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    data[entry + 8] = 0
    pixels = read_pixels(written(tmp_path, "a.tif", bytes(data)))
    assert pixels.inverted_by_file
    np.testing.assert_allclose(np.corrcoef(pixels.values.ravel(), array.ravel())[0, 1], -1, rtol=1e-6)
