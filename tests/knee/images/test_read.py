"""Images: eight formats read alike, damaged files refused."""

import gzip
import io
import os
import struct
import warnings
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from knee.errors import UserError
from knee.images.read import read_mask, read_pixels, write_png

from .samples import DEEP, GOOD, GREY, RNG, dicom_bytes, nifti_bytes, npy_bytes, pillow_bytes, written


@pytest.mark.parametrize("name", GOOD)
def test_formats_agree(tmp_path, name):
    data, expected = GOOD[name]
    pixels = read_pixels(written(tmp_path, name, data))
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values, expected.astype(np.float32))
    assert not pixels.inverted_by_file


def bomb_png(width=60000, height=60000):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def changed_header(data, offset, value):
    return data[:offset] + value + data[offset + len(value) :]


NAN = np.where(GREY > 100, np.nan, GREY).astype(np.float32)
BAD = {
    "empty.png": (b"", "0 bytes"),
    "text.png": (b"hello, world" * 99, "is not a PNG, JPEG"),
    "bomb.png": (bomb_png(), "60000 × 60000 pixels, more than 100 million"),
    "strip.png": (bomb_png(60000, 4), "60000 × 4 pixels, more than 10,000 on one side; crop it"),
    "short.jpg": (pillow_bytes(GREY, "JPEG")[:-20], "truncated JPEG"),
    "short_ended.jpg": (pillow_bytes(GREY, "JPEG")[:-150] + b"\xff\xd9", None),
    "nan.npy": (npy_bytes(NAN), "NaN or infinite"),
    "huge.npy": (npy_bytes(np.array([[1e300, 1]])), "NaN or infinite"),
    "complex.npy": (npy_bytes(GREY * 1j), "not whole or floating-point"),
    "cube.npy": (npy_bytes(np.zeros((3, 4, 5))), r"shape \(3, 4, 5\)"),
    "objects.npy": (npy_bytes(np.array([[{}]]), pickled=True), "not whole or floating-point"),
    "none.npy": (npy_bytes(np.zeros((0, 5))), "5 × 0 pixels"),
    "short.npy": (npy_bytes(GREY)[:-1], "truncated"),
    "header.npy": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(500), "header of"),
    "frames.dcm": (dicom_bytes(np.stack([DEEP] * 2), frames=2), "2 frames"),
    "deflated.dcm": (dicom_bytes(DEEP, syntax=DeflatedExplicitVRLittleEndian), "deflated"),
    "absurd.dcm": (dicom_bytes(DEEP, Rows=60000, Columns=60000), "60000 × 60000"),
    "short.dcm": (dicom_bytes(DEEP)[:-100], None),
    "palette.dcm": (dicom_bytes(DEEP, PhotometricInterpretation="PALETTE COLOR"), "photometric interpretation"),
    "nan.nii": (nifti_bytes(NAN), "NaN or infinite"),
    "short.nii": (nifti_bytes(DEEP)[:-10], "truncated"),
    "short.nii.gz": (nifti_bytes(DEEP, packed=True)[:-30], None),
    "sum.nii.gz": (changed_header(nifti_bytes(DEEP, packed=True), -8, b"\1\2\3\4"), None),
    "absurd.nii": (changed_header(nifti_bytes(DEEP), 42, b"\xff\x7f\xff\x7f"), "32767 × 32767"),
    "bomb.nii.gz": (gzip.compress(nifti_bytes(DEEP) + bytes(20 << 20)), "longer than its header says"),
    "bomb.gz": (gzip.compress(bytes(20 << 20)), "not a NIfTI"),
    "color.nii": (
        nifti_bytes(np.zeros((4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "not whole or floating-point",
    ),
}
PACKED = pillow_bytes(DEEP, "TIFF", compression="tiff_adobe_deflate")
ROWS = (
    struct.pack("<HHI", 257, 4, 1)
    if struct.pack("<HHI", 257, 4, 1) in GOOD["grey.tif"][0]
    else struct.pack("<HHI", 257, 3, 1)
)
BAD |= {
    "exponent.npy": (npy_bytes(np.array([[1e20, 1]], np.float32)), "up to 1e[+]20, which is implausible"),
    "strips.tif": (
        changed_header(GOOD["grey.tif"][0], GOOD["grey.tif"][0].index(ROWS) + 8, struct.pack("<H", 4000)),
        "strips end above its last row",
    ),
    "checksum.tif": (
        changed_header(PACKED, PACKED.index(zlib.compress(DEEP.tobytes())[-4:]), b"\1\2\3\4"),
        "incorrect data check",
    ),
    "bits.nii": (changed_header(nifti_bytes(DEEP), 72, struct.pack("<h", 32)), "32 bits a pixel, where uint16 has 16"),
    "longer.nii": (nifti_bytes(DEEP) + bytes(range(200)), "longer than its header says"),
    "rows.dcm": (dicom_bytes(DEEP, Rows=36), "more pixels than the 30 × 36 that its header says"),
}
CMYK = io.BytesIO()
Image.fromarray(GREY).convert("CMYK").save(CMYK, "JPEG")
BAD["cmyk.jpg"] = (CMYK.getvalue(), "color mode CMYK")
PAGES = io.BytesIO()
Image.fromarray(GREY).save(PAGES, "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)])
BAD["pages.tif"] = (PAGES.getvalue(), "holds 2 pictures")


def test_zeros_after_the_pixels_are_padding(tmp_path):
    padded = dicom_bytes(DEEP, PixelData=DEEP.tobytes() + bytes(200))
    for name, data in (("a.dcm", padded), ("a.nii", nifti_bytes(DEEP) + bytes(200))):
        with warnings.catch_warnings(action="ignore"):
            np.testing.assert_array_equal(read_pixels(written(tmp_path, name, data)).values, DEEP)


@pytest.mark.parametrize("name", BAD)
def test_refused_with_name_and_reason(tmp_path, name):
    data, reason = BAD[name]
    with pytest.raises(UserError, match=reason) as caught:
        read_pixels(written(tmp_path, name, data))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "grey.npy"])
def test_truncated_anywhere_is_refused(tmp_path, name):
    data, _ = GOOD[name]
    for length in {*range(1, 200, 23), *np.linspace(200, len(data) - 13, 25, dtype=int).tolist()}:
        if length < len(data) - 12:
            path = written(tmp_path, name, data[:length])
            with pytest.raises(UserError):
                read_pixels(path)


@pytest.mark.parametrize(
    "name", ["grey.png", "deep_rgb.png", "lossless.webp", "packed.tif", "grey.nii.gz", "grey.dcm", "flat.nii"]
)
def test_flipped_bits_are_read_or_refused(tmp_path, name):
    """Whatever the damage: a full, finite image or a UserError; for checksummed formats never a wrong pixel."""
    data, expected = GOOD[name]
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            values = read_pixels(written(tmp_path, name, bytes(damaged))).values
        except UserError:
            refused += 1
            continue
        assert np.isfinite(values).all()
        if name.endswith(".png"):
            np.testing.assert_array_equal(values, expected)
    assert refused or name in ("grey.dcm", "flat.nii")


def test_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, reason in [
        ("pipe.png", "is not a file"),
        (".", "is not a file"),
        ("link.png", "cannot be read"),
        ("no.png", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=reason):
            read_pixels(tmp_path / name)


def test_slice_of_a_file_that_is_not_a_volume(tmp_path):
    path = written(tmp_path, "a.png", GOOD["grey.png"][0])
    with pytest.raises(UserError, match="slice #2 was requested"):
        read_pixels(f"{path}#2")


def test_masks(tmp_path):
    inside = GREY > 120
    for level in (1, 255):
        write_png(tmp_path / "m.png", (inside * level).astype(np.uint8), force=True)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), inside)
    write_png(tmp_path / "none.png", np.zeros((4, 4), np.uint8))
    assert not read_mask(tmp_path / "none.png").any()
    write_png(tmp_path / "grey.png", GREY)
    with pytest.raises(UserError, match="different values; save 0 and one other"):
        read_mask(tmp_path / "grey.png")
    with pytest.raises(UserError, match="exists already"):
        write_png(tmp_path / "m.png", GREY)


def test_write_png_keeps_color_order(tmp_path):
    color = RNG.integers(0, 256, (5, 6, 3), np.uint8)
    write_png(tmp_path / "c.png", color)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "c.png")), color)


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


def test_volumes_without_patient_orientation_and_other_formats_only_need_the_size(tmp_path):
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
