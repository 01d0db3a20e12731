"""Raster formats: grey values of color, palettes and lossy files; orientation tags."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from knee.errors import UserError
from knee.images.read import read_pixels

from .samples import GREY, pillow_bytes, tiff, written

ORIENTED = {
    "a.jpg": lambda number: pillow(number, "JPEG", quality=95),
    "a.png": lambda number: pillow(number, "PNG"),
    "a.webp": lambda number: pillow(number, "WEBP", lossless=True),
    "a.tif": lambda number: pillow(number, "TIFF"),
    "packed.tif": lambda number: pillow(number, "TIFF", compression="tiff_lzw"),
    "big.tif": lambda number: tiff(GREY, big=True, t274=[number]),
    "motorola.tif": lambda number: tiff(GREY, order=">", t274=[number]),
}


def pillow(number, kind, **options):
    image = Image.fromarray(GREY if kind != "WEBP" else np.stack([GREY] * 3, 2))
    stream = io.BytesIO()
    if kind == "TIFF":
        tags = ImageFileDirectory_v2()
        tags[274] = number
        image.save(stream, kind, tiffinfo=tags, **options)
    else:
        exif = Image.Exif()
        exif[274] = number
        image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", ORIENTED)
def test_orientation_tags_of_no_format_are_followed(tmp_path, name):
    upright = read_pixels(written(tmp_path, name, ORIENTED[name](1)))
    assert upright.remarks == ()
    for number in range(2, 9):
        turned = read_pixels(written(tmp_path, name, ORIENTED[name](number)))
        np.testing.assert_array_equal(turned.values, upright.values)
        assert ["orientation tag" in remark for remark in turned.remarks] == [True]


def test_lossy_formats_are_close(tmp_path):
    for kind in ("JPEG", "WEBP"):
        got = read_pixels(written(tmp_path, "a", pillow_bytes(GREY, kind, quality=95))).values
        assert np.abs(got - GREY).mean() < 4


def test_color_is_luminance_and_transparency_is_black(tmp_path):
    color = np.zeros((10, 4, 4), np.uint8)
    color[0] = 255, 0, 0, 255
    color[1] = 0, 255, 0, 255
    color[2] = 255, 255, 255, 51
    values = read_pixels(written(tmp_path, "a.png", pillow_bytes(color, "PNG"))).values
    np.testing.assert_allclose(values[:4, 0], [0.299 * 255, 0.587 * 255, 51, 0], rtol=1e-5)


def test_a_picture_in_color_is_refused_and_color_noise_is_not(tmp_path):
    overlay = np.stack([GREY, GREY, GREY], 2)
    overlay[: GREY.shape[0] // 2] = 200, 40, 40
    with pytest.raises(UserError, match=r"overlay\.png.*picture in color \(50% of its pixels\).*original in grey"):
        read_pixels(written(tmp_path, "overlay.png", pillow_bytes(overlay, "PNG")))
    noise = np.stack([GREY, GREY, GREY], 2).astype(int) + np.random.default_rng(0).integers(-15, 16, (*GREY.shape, 3))
    noisy = np.clip(noise, 0, 255).astype(np.uint8)
    assert read_pixels(written(tmp_path, "noise.png", pillow_bytes(noisy, "PNG"))).values.shape == GREY.shape


def test_palette_and_bilevel(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(GREY // 64 * 80).convert("P").save(stream, "PNG")
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "p.png", stream.getvalue())).values, GREY // 64 * 80)
    values = read_pixels(written(tmp_path, "b.png", pillow_bytes(GREY > 100, "PNG"))).values
    np.testing.assert_array_equal(values > 0, GREY > 100)
