"""Pixel data of DICOM files: left-aligned bits, signs, padding, compression, trailing zeros."""

import importlib.util
import io
import struct

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from knee.errors import UserError
from knee.images.dicom_pixels import single_frame
from knee.images.read import read_pixels

from .samples import DEEP, GREY, RNG, SIGNED, TWELVE, compressed, dicom_bytes, pillow_bytes, read, written


@pytest.mark.parametrize("bits", [8, 10, 12, 13])
@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_are_taken_from_the_place_that_high_bit_gives(tmp_path, bits, garbage, signed):
    """Whatever the bits below them are, and whether or not the sign bit is repeated above."""
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
    with pytest.raises(UserError, match="values of up to bit 12, but its header says 12 bits stored up to bit 11"):
        read(tmp_path, dicom_bytes(above, **fields))
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(above, **fields)))
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 12)
    stream = io.BytesIO()
    dataset.save_as(stream)
    np.testing.assert_array_equal(read(tmp_path, stream.getvalue()).values, TWELVE)


def test_a_header_that_contradicts_its_bits_is_refused(tmp_path):
    lower = RNG.integers(1, 1 << 12, (20, 16)).astype(np.uint16)
    with pytest.raises(UserError, match="12 bits are stored up to bit 15, but they are lower"):
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


@pytest.mark.parametrize("frames", [0.02, 1, 2.5, 40])
def test_zeros_after_the_pixels_never_make_a_taller_picture(tmp_path, frames):
    zeros = bytes(int(frames * DEEP.nbytes) // 2 * 2)
    for data in (dicom_bytes(DEEP, PixelData=DEEP.tobytes() + zeros), dicom_bytes(DEEP) + zeros):
        np.testing.assert_array_equal(read(tmp_path, data).values, DEEP)


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
    with pytest.raises(UserError, match="compressed picture of 30 × 80 pixels, but its header says 30 × 40"):
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
    """Padding of any value, in MONOCHROME1 and MONOCHROME2, is as dark as the darkest anatomy."""
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


def test_padding_range_that_covers_every_pixel_is_ignored(tmp_path):
    data = dicom_bytes(DEEP, PixelPaddingValue=0, PixelPaddingRangeLimit=65535)
    np.testing.assert_array_equal(read_pixels(written(tmp_path, "a.dcm", data)).values, DEEP)


def enhanced(frames, *, syntax=None):
    """An Enhanced image whose slope is shared and whose spacing and position are those of its frame."""
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(frames, frames=len(frames), Modality="MR")))
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [pydicom.Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.25]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for number in range(len(frames)):
        own = pydicom.Dataset()
        own.PlanePositionSequence, own.PixelValueTransformationSequence = [pydicom.Dataset()], [pydicom.Dataset()]
        own.PlanePositionSequence[0].ImagePositionPatient = [3.0 * number, 0, 0]
        scaling = own.PixelValueTransformationSequence[0]
        scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = number + 1, 0, "US"
        dataset.PerFrameFunctionalGroupsSequence.append(own)
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_a_frame_is_read_with_its_own_scaling_and_the_shared_spacing(tmp_path, syntax):
    frames = RNG.integers(0, 4000, (3, 9, 7)).astype(np.uint16)
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(enhanced(frames, syntax=syntax))
    for number in range(3):
        found = read_pixels(f"{path}#{number}")
        np.testing.assert_array_equal(found.values, frames[number] * (number + 1.0))
        assert found.spacing_mm == (0.5, 0.25)
    with pytest.raises(UserError, match="has frames 0 to 2, and no frame 3"):
        read_pixels(f"{path}#3")
    with pytest.raises(UserError, match=r"3 frames; name one as FILE#7, or choose them with --slices"):
        read_pixels(path)


def test_a_frame_has_its_place_at_the_top_level():
    dataset = pydicom.dcmread(io.BytesIO(enhanced(np.zeros((2, 4, 4), np.uint16))))
    frame = single_frame(dataset, 1)
    assert list(frame.ImagePositionPatient) == [3, 0, 0] and list(frame.PixelSpacing) == [0.5, 0.25]
    assert frame.NumberOfFrames == 1 and "PerFrameFunctionalGroupsSequence" not in frame
