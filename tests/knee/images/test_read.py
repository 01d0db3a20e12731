"""Images: eight formats read alike, damaged files refused."""

import gzip
import io
import os
import struct
import warnings
import zlib

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from knee.errors import UserError
from knee.images.read import read_mask, read_pixels, write_png

RNG = np.random.default_rng(0)
GREY = cv2.GaussianBlur(RNG.integers(0, 256, (40, 30), np.uint8), (5, 5), 0)
DEEP = GREY.astype(np.uint16) * np.uint16(251)


def pillow_bytes(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def npy_bytes(array, *, pickled=False):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def dicom_bytes(array, *, frames=None, syntax=ExplicitVRLittleEndian, **fields):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if frames:
        dataset.NumberOfFrames = frames
    dataset.PixelData = array.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nifti_bytes(array, affine=None, *, packed=False):
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    return gzip.compress(image.to_bytes()) if packed else image.to_bytes()


GOOD = {
    "grey.png": (pillow_bytes(GREY, "PNG"), GREY),
    "deep.png": (cv2.imencode(".png", DEEP)[1].tobytes(), DEEP),
    "rgb.png": (pillow_bytes(np.stack([GREY] * 3, 2), "PNG"), GREY),
    "deep_rgb.png": (cv2.imencode(".png", np.stack([DEEP] * 3, 2))[1].tobytes(), DEEP),
    "opaque.png": (pillow_bytes(np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)]), "PNG"), GREY),
    "grey_alpha.png": (pillow_bytes(np.dstack([GREY, np.full_like(GREY, 255)]), "PNG"), GREY),
    "named_wrong.jpg": (pillow_bytes(GREY, "PNG"), GREY),
    "grey.tif": (pillow_bytes(GREY, "TIFF"), GREY),
    "deep.tif": (pillow_bytes(DEEP, "TIFF"), DEEP),
    "packed.tif": (pillow_bytes(DEEP, "TIFF", compression="tiff_lzw"), DEEP),
    "float.tif": (pillow_bytes(GREY.astype(np.float32) / 7, "TIFF"), GREY.astype(np.float32) / 7),
    "grey.npy": (npy_bytes(GREY), GREY),
    "fortran.npy": (npy_bytes(np.asfortranarray(GREY.astype(np.float64))), GREY),
    "lossless.webp": (pillow_bytes(np.stack([GREY] * 3, 2), "WEBP", lossless=True), GREY),
    "grey.dcm": (dicom_bytes(DEEP), DEEP),
    "grey.nii": (nifti_bytes(DEEP[..., None]), DEEP),
    "flat.nii": (nifti_bytes(GREY), GREY),
    "grey.nii.gz": (nifti_bytes(DEEP[..., None], packed=True), DEEP),
}


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", GOOD)
def test_formats_agree(tmp_path, name):
    data, expected = GOOD[name]
    pixels = read_pixels(written(tmp_path, name, data))
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values, expected.astype(np.float32))
    assert not pixels.inverted_by_file


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


@pytest.mark.parametrize("array", [GREY, DEEP], ids=["8", "16"])
def test_tiff_white_is_zero_is_inverted_once(tmp_path, array):
    data = bytearray(pillow_bytes(array, "TIFF"))
    entry = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    data[entry + 8] = 0
    pixels = read_pixels(written(tmp_path, "a.tif", bytes(data)))
    assert pixels.inverted_by_file
    np.testing.assert_allclose(np.corrcoef(pixels.values.ravel(), array.ravel())[0, 1], -1, rtol=1e-6)


def test_dicom_fields(tmp_path):
    data = dicom_bytes(
        DEEP, PhotometricInterpretation="MONOCHROME1", ImagerPixelSpacing=[0.1, 0.2], PixelSpacing=[9, 9]
    )
    pixels = read_pixels(written(tmp_path, "a.dcm", data))
    assert pixels.inverted_by_file
    assert pixels.spacing_mm == (0.1, 0.2)
    np.testing.assert_array_equal(pixels.values, float(DEEP.max()) + float(DEEP.min()) - DEEP)
    data = dicom_bytes(DEEP, PixelSpacing=[0.3, 0.3], ImageLaterality="L", RescaleSlope=2, RescaleIntercept=-5)
    pixels = read_pixels(written(tmp_path, "a.dcm", data))
    assert (pixels.spacing_mm, pixels.laterality) == ((0.3, 0.3), "L")
    np.testing.assert_array_equal(pixels.values, DEEP * 2.0 - 5)
    pixels = read_pixels(written(tmp_path, "a.dcm", dicom_bytes(DEEP, SeriesDescription="SAG_3D_DESS_RIGHT")))
    assert (pixels.spacing_mm, pixels.laterality) == (None, "R")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        (-2000, {"PixelPaddingValue": -2000}),
        (-1995, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (3000, {"PixelPaddingValue": 3000}),
    ],
)
def test_dicom_padding_is_background(tmp_path, photometric, stored, fields):
    """Whatever number stands for it, and whichever way the rest is shown: as dark as the darkest of the anatomy."""
    anatomy = np.random.default_rng(0).integers(100, 900, (12, 10)).astype(np.int16)
    padded = anatomy.copy()
    padded[:, :3] = stored
    shown = {"PixelRepresentation": 1, "PhotometricInterpretation": photometric}
    found = read_pixels(written(tmp_path, "a.dcm", dicom_bytes(padded, **shown, **fields))).values
    rest = anatomy[:, 3:].astype(np.float64)
    if photometric == "MONOCHROME1":
        rest = rest.max() + rest.min() - rest
    np.testing.assert_array_equal(found[:, 3:], rest)
    assert (found[:, :3] == rest.min()).all()


def test_dicom_padding_that_would_be_everything_is_not_believed(tmp_path):
    data = dicom_bytes(DEEP, PixelPaddingValue=0, PixelPaddingRangeLimit=65535)
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "a.dcm", data)).values, DEEP)


def test_dicom_window_for_radiographs_and_not_for_mr(tmp_path):
    window = {"WindowCenter": 30000, "WindowWidth": 10000}
    clipped = read_pixels(written(tmp_path, "a.dcm", dicom_bytes(DEEP, Modality="DX", **window))).values
    assert (clipped == clipped.max()).sum() >= (DEEP > 35000).sum() > 0
    whole = read_pixels(written(tmp_path, "b.dcm", dicom_bytes(DEEP, Modality="MR", **window))).values
    np.testing.assert_array_equal(whole, DEEP)


@pytest.mark.parametrize(
    "fields",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": 0, "RescaleIntercept": 5},
        {"RescaleSlope": 2, "RescaleIntercept": None},
        {"WindowCenter": 30000, "WindowWidth": 0},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 30000},
        {"WindowCenter": 30000, "WindowWidth": 10000, "VOILUTFunction": "GAMMA"},
        {"PixelSpacing": 0.3},
        {"PixelSpacing": [0.3, 0]},
        {"ImagerPixelSpacing": None, "PixelSpacing": ""},
        {"VOILUTSequence": [pydicom.Dataset()]},
        {"ModalityLUTSequence": [pydicom.Dataset()]},
    ],
)
def test_blanked_or_impossible_headers_leave_the_pixels_as_they_are(tmp_path, fields):
    pixels = read_pixels(written(tmp_path, "a.dcm", dicom_bytes(DEEP, Modality="DX", **fields)))
    np.testing.assert_array_equal(pixels.values, DEEP)
    assert pixels.spacing_mm is None


def test_what_of_a_header_is_sound_is_used_beside_what_is_not(tmp_path):
    window = {"WindowCenter": [30000, 9], "WindowWidth": [10000, 0], "VOILUTFunction": ""}
    data = dicom_bytes(
        DEEP, Modality="DX", RescaleSlope=None, **window, ImagerPixelSpacing=0.1, PixelSpacing=[0.3, 0.2]
    )
    pixels = read_pixels(written(tmp_path, "a.dcm", data))
    assert (pixels.values == pixels.values.max()).sum() >= (DEEP > 35000).sum() > 0
    assert pixels.spacing_mm == (0.3, 0.2)
    table = pydicom.Dataset()
    levels = np.array([7, 50, 100, 200], "<u2")
    table.LUTDescriptor, table.LUTData = [4, 0, 16], levels.tobytes()
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        data = dicom_bytes(DEEP % 4, Modality="DX", WindowWidth=0, **{name: [table]})
        values = read_pixels(written(tmp_path, "lut.dcm", data)).values
        np.testing.assert_array_equal(values, levels[DEEP % 4])


def test_a_ramp_in_color_reads_alike_as_rgb_and_as_ybr(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    neutral = np.full_like(ramp, 128)
    stored = {"RGB": (ramp, ramp, ramp), "YBR_FULL": (ramp, neutral, neutral)}
    for photometric, planes in stored.items():
        color = {"PhotometricInterpretation": photometric, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
        size = {"Rows": 4, "Columns": 256}
        data = dicom_bytes(np.stack(planes, 2), **color, **size)
        values = read_pixels(written(tmp_path, f"{photometric}.dcm", data)).values
        np.testing.assert_allclose(values, ramp, atol=0.01)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_a_picture_in_color_is_refused_in_dicom_as_in_other_formats(tmp_path, photometric):
    overlay = np.stack([GREY, GREY, GREY], 2)
    overlay[: GREY.shape[0] // 2] = 200, 40, 40
    stored = overlay if photometric == "RGB" else convert_color_space(overlay, "RGB", photometric)
    color = {"PhotometricInterpretation": photometric, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    path = written(tmp_path, "screenshot.dcm", dicom_bytes(stored, Rows=40, Columns=30, **color))
    with pytest.raises(UserError, match=r"screenshot\.dcm.*picture in color \(50% of its pixels\)"):
        read_pixels(path)


def test_nifti_volume_slices(tmp_path):
    volume = RNG.integers(0, 1000, (5, 6, 7)).astype(np.int16)
    for packed in (False, True):
        path = written(tmp_path, "v.nii.gz", nifti_bytes(volume, np.diag([0.5, 0.4, 3, 1]), packed=packed))
        pixels = read_pixels(f"{path}#3")
        np.testing.assert_array_equal(pixels.values, volume[:, :, 3])
        np.testing.assert_allclose(pixels.spacing_mm, (0.5, 0.4), rtol=1e-6)
        with pytest.raises(UserError, match="has 7 slices; write one, #0 to #6"):
            read_pixels(path)
        with pytest.raises(UserError, match="has slices #0 to #6 but no #7"):
            read_pixels(f"{path}#7")


def test_nifti_sagittal_is_shown_head_up_and_anterior_left(tmp_path):
    # Array axes: to the posterior, to the head, to the left (sagittal acquisition), 4 mm between slices.
    volume = RNG.integers(0, 1000, (5, 6, 3)).astype(np.int16)
    affine = np.array([[0, 0, -4, 0], [-0.5, 0, 0, 0], [0, 0.25, 0, 0], [0, 0, 0, 1.0]])
    pixels = read_pixels(f"{written(tmp_path, 'v.nii', nifti_bytes(volume, affine))}#1")
    np.testing.assert_array_equal(pixels.values, volume[:, ::-1, 1].T)
    assert pixels.spacing_mm == (0.25, 0.5)
    # The same anatomy, stored with the slices along the first axis, shows the same picture.
    turned = np.moveaxis(volume, 2, 0)
    pixels_again = read_pixels(f"{written(tmp_path, 'w.nii', nifti_bytes(turned, affine[:, [2, 0, 1, 3]]))}#1")
    np.testing.assert_array_equal(pixels_again.values, pixels.values)


def test_nifti_of_canonical_axes_is_sliced_as_the_same_volume_in_any_other_order(tmp_path):
    # Right, anterior, superior, with 3 mm between sagittal slices: what nibabel's as_closest_canonical makes of any scan.
    volume = RNG.integers(0, 1000, (4, 5, 6)).astype(np.int16)
    affine = np.diag([3, 0.5, 0.25, 1])
    affine[:3, 3] = [-90, 12, 40]
    stored = nibabel.Nifti1Image(volume, affine)
    target = nibabel.orientations.axcodes2ornt("PSL")
    order = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(affine), target)
    scanned = stored.as_reoriented(order)
    pixels = read_pixels(f"{written(tmp_path, 'ras.nii', stored.to_bytes())}#1")
    np.testing.assert_array_equal(pixels.values, volume[1, ::-1, ::-1].T)
    assert pixels.spacing_mm == (0.25, 0.5)
    pixels_again = read_pixels(f"{written(tmp_path, 'psl.nii', scanned.to_bytes())}#2")
    np.testing.assert_array_equal(pixels_again.values, pixels.values)


def test_nifti_that_knows_of_no_patient_is_read_as_the_array_lies(tmp_path):
    volume = RNG.integers(0, 1000, (5, 6, 7)).astype(np.int16)
    untold = nibabel.Nifti1Image(volume, np.diag([0.5, 0.4, 3, 1]))
    cut = untold.slicer[:, :, 3:4]
    assert cut.affine[2, 3] == 9
    distances = nibabel.Nifti1Image(volume, None)
    distances.header.set_zooms((0.5, 0.4, 3))
    for name, image in (("untold.nii#3", untold), ("cut.nii#0", cut), ("distances.nii#3", distances)):
        path = written(tmp_path, name.partition("#")[0], image.to_bytes())
        pixels = read_pixels(f"{path}#{name[-1]}")
        np.testing.assert_array_equal(pixels.values, volume[:, :, 3])
        np.testing.assert_allclose(pixels.spacing_mm, (0.5, 0.4), rtol=1e-6)


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


def test_zeros_after_a_jpeg_are_padding_and_do_not_make_a_truncated_one_whole(tmp_path):
    data = pillow_bytes(GREY, "JPEG")
    whole = read_pixels(written(tmp_path, "a.jpg", data)).values
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "a.jpg", data + bytes(4096))).values, whole)
    for truncated in (data[:-20], data[:-2]):
        for after in (bytes(4096), bytes(range(1, 201)), b"\r\n"):
            with pytest.raises(UserError, match="JPEG"):
                read_pixels(written(tmp_path, "a.jpg", truncated + after))


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


def test_slice_of_what_is_no_volume(tmp_path):
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
