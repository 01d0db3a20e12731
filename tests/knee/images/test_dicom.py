"""DICOM of real archives: left-aligned bits, destructive windows, other objects, missing preambles, compressed pixels."""

import importlib.util
import io
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from knee.errors import UserError
from knee.images.dicom import other_object, read_subject
from knee.images.read import read_pixels

from .test_read import DEEP, GREY, dicom_bytes, pillow_bytes, written

RNG = np.random.default_rng(11)
TWELVE = RNG.integers(0, 4096, (20, 16)).astype(np.uint16)
SIGNED = RNG.integers(-2048, 2048, (20, 16)).astype(np.int16)


def read(folder, data):
    return read_pixels(written(folder, "a.dcm", data))


@pytest.mark.parametrize("bits", [8, 10, 12, 13])
@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_are_taken_from_where_high_bit_says(tmp_path, bits, garbage, signed):
    """Whatever lies below them, and whether or not the sign is repeated above."""
    values = RNG.integers(-(1 << bits - 1) if signed else 0, 1 << bits - signed, (20, 16))
    for high in range(bits - 1, 16):
        low = high + 1 - bits
        stored = (values << low) + (RNG.integers(0, 1 << low, values.shape) if garbage else 0)
        fields = {"BitsStored": bits, "HighBit": high, "PixelRepresentation": int(signed)}
        arrays = [stored] if not signed else [stored, stored & ((1 << high + 1) - 1)]
        for array in arrays:
            found = read(tmp_path, dicom_bytes(array.astype(np.uint16), **fields)).values
            np.testing.assert_array_equal(found, values)


def test_values_above_the_stored_bits_are_refused_unless_an_overlay_explains_them(tmp_path):
    fields = {"BitsStored": 12, "HighBit": 11}
    above = TWELVE | (RNG.integers(0, 2, TWELVE.shape).astype(np.uint16) << 12)
    with pytest.raises(UserError, match="values of up to bit 12, where its header says 12 bits stored up to bit 11"):
        read(tmp_path, dicom_bytes(above, **fields))
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(above, **fields)))
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 12)
    stream = io.BytesIO()
    dataset.save_as(stream)
    np.testing.assert_array_equal(read(tmp_path, stream.getvalue()).values, TWELVE)


def test_a_header_that_contradicts_its_bits_is_refused(tmp_path):
    lower = RNG.integers(1, 1 << 12, (20, 16)).astype(np.uint16)
    with pytest.raises(UserError, match="12 bits are stored up to bit 15, but they lie lower"):
        read(tmp_path, dicom_bytes(lower, BitsStored=12, HighBit=15))
    for fields in (
        {"BitsStored": 12, "HighBit": 16},
        {"BitsStored": 12, "HighBit": 9},
        {"BitsStored": 0, "HighBit": 11},
    ):
        with pytest.raises(UserError, match="which is impossible"):
            read(tmp_path, dicom_bytes(lower, **fields))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_counts_with_either_sign_and_may_exceed_the_stored_bits(tmp_path, padding, photometric):
    values = SIGNED.copy() // 2
    values[:, :3] = -2000
    for fields in (
        {"PixelRepresentation": 1, "BitsStored": 11, "HighBit": 10},
        {"PixelRepresentation": 1},
    ):
        dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(values, PhotometricInterpretation=photometric, **fields)))
        dataset.add_new(0x00280120, "SS" if padding < 0 else "US", padding)
        stream = io.BytesIO()
        dataset.save_as(stream)
        found = read(tmp_path, stream.getvalue()).values
        rest = values[:, 3:].astype(np.float64)
        rest = rest.max() + rest.min() - rest if photometric == "MONOCHROME1" else rest
        np.testing.assert_array_equal(found[:, 3:], rest)
        assert (found[:, :3] == rest.min()).all()


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
def test_objects_that_are_no_images_of_a_patient_are_refused_by_their_kind(tmp_path, name, sop_class):
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


@pytest.mark.parametrize("frames", [0.02, 1, 2.5, 40])
def test_zeros_after_the_pixels_never_make_a_taller_picture(tmp_path, frames):
    zeros = bytes(int(frames * DEEP.nbytes) // 2 * 2)
    for data in (dicom_bytes(DEEP, PixelData=DEEP.tobytes() + zeros), dicom_bytes(DEEP) + zeros):
        np.testing.assert_array_equal(read(tmp_path, data).values, DEEP)


def compressed(array, syntax, frame, **fields):
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(array, **fields)))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("array", [GREY, DEEP, SIGNED], ids=["8", "16", "signed"])
def test_rle_is_read_exactly(tmp_path, array):
    fields = {"PixelRepresentation": int(array.dtype.kind == "i")}
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(array, **fields)))
    dataset.compress(RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    dataset.save_as(stream)
    np.testing.assert_array_equal(read(tmp_path, stream.getvalue()).values, array)


def test_rle_that_unpacks_to_far_more_takes_no_more_memory(tmp_path):
    segment = b"\x81\0" * 500_000  # 64 MB
    frame = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    assert read(tmp_path, compressed(DEEP, RLELossless, frame)).values.shape == DEEP.shape
    with pytest.raises(UserError, match="1 RLE segments, where 2 are needed"):
        read(tmp_path, compressed(DEEP, RLELossless, struct.pack("<16I", 1, 64, *[0] * 14) + segment))


def test_a_compressed_picture_of_another_size_is_refused(tmp_path):
    frame = pillow_bytes(np.tile(GREY, (2, 1)), "JPEG")
    with pytest.raises(UserError, match="compressed picture of 30 × 80 pixels, where its header says 30 × 40"):
        read(tmp_path, compressed(GREY, JPEGBaseline8Bit, frame))


def lossless_jpeg(array):
    """A JPEG Lossless stream (T.81, annex H; predictor 1) whose Huffman table gives each of 17 categories five bits."""
    height, width = array.shape
    before = np.empty(array.shape, int)
    before[:, 1:], before[1:, 0], before[0, 0] = array[:, :-1], array[:-1, 0], 1 << 15
    bits = []
    for difference in (array.astype(int) - before).ravel().tolist():
        difference = (difference + (1 << 15)) % (1 << 16) - (1 << 15)
        size = abs(difference).bit_length()
        extra = f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}" if 0 < size < 16 else ""
        bits.append(f"{size:05b}{extra}")
    text = "".join(bits)
    packed = int(text + "1" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8), "big").replace(b"\xff", b"\xff\0")
    table = struct.pack(">HB16B17B", 36, 0, 0, 0, 0, 0, 17, *[0] * 11, *range(17))
    frame = struct.pack(">HBHHB3B", 11, 16, height, width, 1, 1, 0x11, 0)
    scan = struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8\xff\xc3" + frame + b"\xff\xc4" + table + b"\xff\xda" + scan + packed + b"\xff\xd9"


def test_jpeg_lossless_is_read_with_the_extra_and_names_it_without(tmp_path):
    data = compressed(DEEP, JPEGLosslessSV1, lossless_jpeg(DEEP))
    if importlib.util.find_spec("gdcm"):
        np.testing.assert_array_equal(read(tmp_path, data).values, DEEP)
    else:
        with pytest.raises(
            UserError, match=r"no installed decoder reads \(JPEG Lossless.*pip install 'dcmt-knee\[dicom\]'"
        ):
            read(tmp_path, data)


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
