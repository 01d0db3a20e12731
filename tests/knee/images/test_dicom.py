"""DICOM of real archives: left-aligned bits, destructive windows, other objects, missing preambles, compressed pixels."""

import io
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.filebase import DicomBytesIO
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from knee.errors import UserError
from knee.images.dicom import other_object, read_subject
from knee.images.read import read_pixels

from .samples import DEEP, GREY, TWELVE, compressed, dicom_bytes, pillow_bytes, read, written


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(128, 255), (4000, 2), (100_000, 50), (-900, 10), (2000, 1)])
def test_a_window_that_destroys_the_picture_is_not_applied_and_remarked(tmp_path, function, center, width):
    fields = {"Modality": "DX", "WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    found = read(tmp_path, dicom_bytes(TWELVE, **fields))
    np.testing.assert_array_equal(found.values, TWELVE)
    assert ["black or white, which is not applied" in remark for remark in found.remarks] == [True]


def test_of_several_windows_the_first_that_shows_the_picture_is_applied(tmp_path):
    windows = {"WindowCenter": [30, 2048, 9], "WindowWidth": [3, 3000, 2]}
    several = read(tmp_path, dicom_bytes(TWELVE, Modality="DX", **windows))
    alone = read(tmp_path, dicom_bytes(TWELVE, Modality="DX", WindowCenter=2048, WindowWidth=3000))
    np.testing.assert_array_equal(several.values, alone.values)
    assert (alone.values != TWELVE).any()
    assert len(several.remarks) == 1
    assert alone.remarks == ()


def test_one_bright_marker_does_not_make_a_window_destructive(tmp_path):
    marked = TWELVE // 8
    marked[0, 0] = 60_000
    found = read(tmp_path, dicom_bytes(marked, Modality="DX", WindowCenter=256, WindowWidth=500))
    assert found.remarks == ()
    assert found.values[0, 0] == found.values.max() == 65535


@pytest.mark.parametrize(
    ("name", "sop_class"),
    [
        ("Segmentation Storage", "1.2.840.10008.5.1.4.1.1.66.4"),
        ("Secondary Capture Image Storage", "1.2.840.10008.5.1.4.1.1.7"),
        ("Multi-frame Grayscale Byte Secondary Capture Image Storage", "1.2.840.10008.5.1.4.1.1.7.2"),
        ("Key Object Selection Document Storage", "1.2.840.10008.5.1.4.1.1.88.59"),
        ("Basic Text SR Storage", "1.2.840.10008.5.1.4.1.1.88.11"),
        ("Grayscale Softcopy Presentation State Storage", "1.2.840.10008.5.1.4.1.1.11.1"),
        ("Parametric Map Storage", "1.2.840.10008.5.1.4.1.1.30"),
        ("RT Dose Storage", "1.2.840.10008.5.1.4.1.1.481.2"),
        ("VL Photographic Image Storage", "1.2.840.10008.5.1.4.1.1.77.1.4"),
        ("Encapsulated PDF Storage", "1.2.840.10008.5.1.4.1.1.104.1"),
        ("Media Storage Directory Storage", "1.2.840.10008.1.3.10"),
    ],
)
def test_objects_that_are_not_images_of_a_patient_are_refused_by_their_kind(tmp_path, name, sop_class):
    path = written(tmp_path, "a.dcm", dicom_bytes(DEEP, SOPClassUID=sop_class))
    assert other_object(path) == name
    with pytest.raises(UserError, match=f"DICOM object of another kind .*{name}"):
        read_pixels(path)


def test_images_and_unknown_classes_are_read(tmp_path):
    for number in ("1.1", "1.1.1", "2", "4", "12.2"):
        path = written(tmp_path, "a.dcm", dicom_bytes(DEEP, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{number}"))
        assert other_object(path) == ""
        np.testing.assert_array_equal(read_pixels(path).values, DEEP)
    for fields in ({"SOPClassUID": "1.2.3.4"}, {"SOPClassUID": None}):
        assert other_object(written(tmp_path, "a.dcm", dicom_bytes(DEEP, **fields))) == ""
        assert other_object(written(tmp_path, "b.dcm", dicom_bytes(DEEP, Modality="SEG", **fields)))
    assert other_object(written(tmp_path, "a.png", pillow_bytes(GREY, "PNG"))) == ""


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble_or_transfer_syntax_are_read(tmp_path, implicit):
    syntax = {"syntax": ImplicitVRLittleEndian} if implicit else {}
    whole = dicom_bytes(DEEP, PatientID="P7", ImageLaterality="L", **syntax)
    dataset = pydicom.dcmread(io.BytesIO(whole))
    bare = DicomBytesIO()
    bare.is_implicit_VR, bare.is_little_endian = implicit, True
    pydicom.filewriter.write_dataset(bare, dataset)
    for data in (whole[132:], bare.getvalue(), bytes(128) + b"DICM" + bare.getvalue()):
        path = written(tmp_path, "a.dcm", data)
        np.testing.assert_array_equal(read_pixels(path).values, DEEP)
        assert read_subject(path) == ("P7", "L")


def test_big_endian_is_read(tmp_path):
    stream = io.BytesIO()
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(TWELVE, BitsStored=12, HighBit=11)))
    dataset.PixelData = TWELVE.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    np.testing.assert_array_equal(read(tmp_path, stream.getvalue()).values, TWELVE)


def test_many_fragments_and_elements_are_refused(tmp_path):
    data = dicom_bytes(DEEP)
    place = data.index(b"\x28\0\x02\0US")
    elements = data[:place] + struct.pack("<HH2sH", 0x21, 0x10, b"LO", 0) * 300_000 + data[place:]
    with pytest.raises(UserError, match="made of more than 200,000 parts"):
        read(tmp_path, elements)
    jpeg = io.BytesIO()
    Image.fromarray(GREY).save(jpeg, "JPEG")
    whole = compressed(GREY, JPEGBaseline8Bit, jpeg.getvalue())
    with pytest.raises(UserError, match=r"fragments|parts"):
        read(tmp_path, whole[:-8] + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 20_000 + whole[-8:])


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


def test_valid_fields_of_a_header_are_used_next_to_invalid_ones(tmp_path):
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
