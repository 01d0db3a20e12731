"""Number types, orientation tags, trailing bytes and places of masks: one rule for every format."""

import io
import struct

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from knee.errors import UserError
from knee.images.read import read_mask, read_pixels
from knee.images.slices import is_file, split_slice

from .test_read import DEEP, GREY, nifti_bytes, pillow_bytes, written

RNG = np.random.default_rng(17)


def tiff(array, *, order="<", big=False, sample_format=None, planes=None, rows_per_strip=None, **tags):
    """An uncompressed TIFF of any number type; ``planes``: the strips' bytes, in place of the array's own."""
    height, width = array.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    strips = planes or [array.astype(array.dtype.newbyteorder(order)).tobytes()]
    head = 16 if big else 8
    offsets = np.cumsum([head, *map(len, strips)])[:-1].tolist()
    entries = {
        256: [width], 257: [height], 258: [array.dtype.itemsize * 8], 259: [1], 262: [1], 273: offsets, 277: [1],
        278: [rows_per_strip or height], 279: [len(strip) for strip in strips],
        339: [sample_format or kinds[array.dtype.kind]],
    } | {int(tag[1:]): value for tag, value in tags.items()}  # fmt: skip
    step, count_format, field = (20, "Q", "Q") if big else (12, "H", "I")
    body = b"".join(strips)
    place = head + len(body)
    extra_at = place + struct.calcsize("<" + count_format) + step * len(entries) + struct.calcsize("<" + field)
    directory, extra = struct.pack(order + count_format, len(entries)), b""
    for tag, values in sorted(entries.items()):
        code, kind = ("H", 3) if tag not in (256, 257, 273, 278, 279) else ("I", 4)
        packed = struct.pack(order + code * len(values), *values)
        if len(packed) > struct.calcsize("<" + field):
            packed, extra = struct.pack(order + field, extra_at + len(extra)), extra + packed
        directory += struct.pack(order + "HH" + field, tag, kind, len(values)) + packed.ljust(
            struct.calcsize("<" + field), b"\0"
        )
    mark = b"II" if order == "<" else b"MM"
    start = struct.pack(order + "HHHQ", 43, 8, 0, place) if big else struct.pack(order + "HI", 42, place)
    return mark + start + body + directory + struct.pack(order + field, 0) + extra


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


AFFINE = np.array([[0, 0, -4, 30.0], [-0.5, 0, 0, 70], [0, 0.25, 0, -20], [0, 0, 0, 1.0]])


def volume(folder, name, array, affine):
    return written(folder, name, nifti_bytes(array, affine))


def test_a_mask_in_the_same_place_is_read_however_it_is_stored(tmp_path):
    image = RNG.integers(1, 900, (12, 12, 5)).astype(np.int16)
    drawn = (image > 450).astype(np.uint8)
    shown = read_pixels(f"{volume(tmp_path, 'i.nii', image, AFFINE)}#3")
    expected = shown.values > 450
    for axes in ("", "ras", "lpi", "psl"):
        stored = nibabel.Nifti1Image(drawn, AFFINE)
        if axes:
            target = nibabel.orientations.axcodes2ornt(axes.upper())
            here = nibabel.orientations.io_orientation(AFFINE)
            stored = stored.as_reoriented(nibabel.orientations.ornt_transform(here, target))
        path = written(tmp_path, "m.nii", stored.to_bytes())
        fitting = []
        for index in range(5):
            try:
                np.testing.assert_array_equal(read_mask(f"{path}#{index}", of=shown), expected)
                fitting.append(index)
            except UserError as error:
                assert "is at another position than its image" in str(error)
        assert len(fitting) == 1
    cut = volume(tmp_path, "cut.nii", drawn[:, :, 3:4], AFFINE)
    np.testing.assert_array_equal(read_mask(cut, of=shown), expected)


def changed_affines():
    yield "identity", np.eye(4)
    yield "spacings", np.diag([0.5, 0.25, 4, 1])
    for axis in range(3):
        flipped, moved = AFFINE.copy(), AFFINE.copy()
        flipped[:3, axis] *= -1
        moved[:3, 3] += AFFINE[:3, axis]
        wider = AFFINE.copy()
        wider[:3, axis] *= 1.2
        yield from ((f"flipped{axis}", flipped), (f"moved{axis}", moved), (f"wider{axis}", wider))


@pytest.mark.parametrize(("name", "affine"), changed_affines())
def test_a_mask_with_another_affine_is_refused_by_name(tmp_path, name, affine):
    image = RNG.integers(1, 900, (12, 12, 5)).astype(np.int16)
    shown = read_pixels(f"{volume(tmp_path, 'i.nii', image, AFFINE)}#3")
    mask = volume(tmp_path, "m.nii", (image > 450).astype(np.uint8), affine)
    with pytest.raises(UserError, match=r"m\.nii#3: is at another position than its image.*image\.affine"):
        read_mask(f"{mask}#3", of=shown)


def test_volumes_that_know_of_no_patient_and_other_formats_only_need_the_size(tmp_path):
    image = RNG.integers(1, 900, (12, 12, 5)).astype(np.int16)
    shown = read_pixels(f"{volume(tmp_path, 'i.nii', image, np.diag([0.5, 0.4, 3, 1]))}#3")
    expected = image[:, :, 3] > 450
    np.testing.assert_array_equal(
        read_mask(f"{volume(tmp_path, 'm.nii', (image > 450).astype(np.uint8), np.eye(4))}#3", of=shown), expected
    )
    png = written(tmp_path, "m.png", pillow_bytes(expected.astype(np.uint8), "PNG"))
    np.testing.assert_array_equal(read_mask(png, of=shown), expected)
    with pytest.raises(UserError, match=r"has 12 × 12 pixels, its image 30 × 40; draw the mask on the image"):
        read_mask(png, of=read_pixels(written(tmp_path, "i.png", pillow_bytes(GREY, "PNG"))))


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "x" * 300 + ".nii#3", "y" * 5000 + "/a.png", "a\0b.png"])
def test_a_name_that_cannot_exist_is_refused_as_any_missing_file(tmp_path, name):
    assert not is_file(tmp_path / name)
    assert split_slice(f"{tmp_path}/{name}")[1] == (3 if "#3" in name else None)
    with pytest.raises(UserError):
        read_pixels(tmp_path / name)


def test_deep_grey_is_exact(tmp_path):
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "a.tif", tiff(DEEP, big=True))).values, DEEP)
