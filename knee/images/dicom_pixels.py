"""The stored pixel values of a DICOM image: decompressed, cut to their size, aligned by High Bit."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from knee.images.jpeg import check_scans, jpeg_structure

_BY_EXTRA = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_ITEM = b"\xfe\xff\x00\xe0"
_MOST_FRAGMENTS = 10_000
_MOST_JPEG_2000_PIXELS = 30_000_000
"""Its decoder is slow: this many pixels take about ten seconds."""

Stored = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def stored_pixels(dataset: pydicom.Dataset, padding: list[float]) -> tuple[Stored, Mask]:
    """(H, W) stored values, or (H, W, 3) of color, and which pixels (H, W) are padding.

    Args:
        dataset: of one frame, with checked sizes; it is modified.
        padding: PixelPaddingValue and PixelPaddingRangeLimit, if given.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        _unpack_rle(dataset, _frame(dataset))
    elif syntax.is_compressed:
        _check_compressed(dataset, syntax, _frame(dataset))
    else:
        _cut(dataset)
    bits, allocated, signed = int(dataset.BitsStored), int(dataset.BitsAllocated), bool(dataset.PixelRepresentation)
    high = bits - 1 if dataset.get("HighBit") in (None, "") else int(dataset.HighBit)
    if not 1 <= bits <= high + 1 <= allocated:
        raise ValueError(f"its header says {bits} bits stored up to bit {high} of {allocated}, which is impossible")
    if not (signed and syntax.is_compressed and syntax != RLELossless):
        dataset.BitsStored, dataset.HighBit = allocated, allocated - 1  # pydicom would drop the bits above
    try:
        array = dataset.pixel_array
    except (NotImplementedError, RuntimeError) as error:
        hint = "pip install 'dcmt-knee[dicom]', or save it uncompressed"
        if syntax in _BY_EXTRA:
            raise ValueError(f"has pixels that no installed decoder reads ({syntax.name}); {hint}") from error
        raise
    if array.ndim != 2 or allocated not in (8, 16, 32):
        return array, np.zeros(array.shape[:2], np.bool_)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    padded = _is_padding(array, padding)
    overlay = any(
        dataset.get((group, 0x0102)) and not dataset.get((group, 0x3000)) for group in range(0x6000, 0x601F, 2)
    )
    values = _aligned(array, padded, bits=bits, high=high, overlay=overlay)
    padded |= _is_padding(values, padding)
    return values, np.zeros_like(padded) if padded.all() else padded


def single_frame(dataset: pydicom.Dataset, index: int) -> pydicom.Dataset:
    """Reduce a multi-frame image to its frame ``index``, from 0, with the frame's own attributes at the top level.

    Pixels, if there are any, are those of the frame. Raises ValueError where there is no such frame.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    if not 0 <= index < count:
        raise ValueError(f"has frames 0 to {count - 1}, and no frame {index}")
    if count > 1 and "PixelData" in dataset:
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.PixelData = encapsulate([get_frame(dataset.PixelData, index, number_of_frames=count)])
        else:
            size = get_expected_length(dataset) // count
            pixels = dataset.PixelData[index * size : (index + 1) * size]
            dataset.PixelData = pixels + bytes(len(pixels) % 2)
    dataset.NumberOfFrames = 1
    shared, own = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    for group in [*(shared or [])[:1], *(own or [])[index : index + 1]]:
        for sequence in group:
            for element in (sequence.value or [[]])[0] if sequence.VR == "SQ" else ():
                dataset[element.tag] = element
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in dataset:
            del dataset[keyword]
    return dataset


def _cut(dataset: pydicom.Dataset) -> None:
    """Refuse more pixels than expected, which means a wrong size in the header; zeros after the pixels are cut off."""
    expected = get_expected_length(dataset)
    rest = dataset.PixelData[expected:]
    if len(rest) >= expected // int(dataset.Rows) and rest.strip(b"\0"):
        raise ValueError(f"has more pixels than the {dataset.Columns} × {dataset.Rows} that its header says")
    if len(rest) > 1:  # pydicom would treat them as further frames
        dataset.PixelData = dataset.PixelData[: expected + expected % 2]


def _frame(dataset: pydicom.Dataset) -> bytes:
    if dataset.PixelData.count(_ITEM) > _MOST_FRAGMENTS:
        raise ValueError(f"has pixels in more than {_MOST_FRAGMENTS:,} fragments")
    frame: bytes = get_frame(dataset.PixelData, 0, number_of_frames=1)
    return frame


def _check_compressed(dataset: pydicom.Dataset, syntax: pydicom.uid.UID, frame: bytes) -> None:
    """Compare the size in a JPEG stream with the header's before it is decoded."""
    if syntax in JPEG2000TransferSyntaxes:
        start = frame.find(b"\xff\x4f\xff\x51")
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        height, width = bottom - top, right - left
        if height * width > _MOST_JPEG_2000_PIXELS:
            raise ValueError(f"has {width} × {height} pixels in JPEG 2000, more than 30 million; save it uncompressed")
    else:
        structure = jpeg_structure(frame)
        height, width = structure.height, structure.width
        check_scans(structure.scans, height, width)
    if (height, width) != (dataset.Rows, dataset.Columns):
        raise ValueError(
            f"has a compressed picture of {width} × {height} pixels, but its header says {dataset.Columns} × {dataset.Rows}"
        )


def _unpack_rle(dataset: pydicom.Dataset, frame: bytes) -> None:
    """Replace RLE pixels (PS3.5, annex G: PackBits, one segment per byte of each sample) by native ones."""
    count, *offsets = struct.unpack_from("<16I", frame)
    samples, size = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated) // 8
    if count != samples * size:
        raise ValueError(f"has {count} RLE segments, where {samples * size} are needed")
    ends = [*offsets[1:count], len(frame)]
    shape = (int(dataset.Rows) * int(dataset.Columns), 1)
    planes = np.empty((samples, shape[0], size), np.uint8)
    for number, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        segment = Image.frombytes("L", shape, frame[start:end], "packbits", "L")
        planes[number // size, :, size - 1 - number % size] = np.frombuffer(segment.tobytes(), np.uint8)
    dataset.PixelData = planes.tobytes() + bytes(planes.size % 2)
    dataset.PlanarConfiguration = 1
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False


def _is_padding(array: Stored, padding: list[float]) -> Mask:
    """Which values are in the padding range; its limits may be written with the other signedness, as the same bits."""
    if not padding:
        return np.zeros(array.shape, np.bool_)
    bits = np.array([int(end) % (1 << 8 * array.dtype.itemsize) for end in padding[:2]], f"u{array.dtype.itemsize}")
    ends = bits.view(array.dtype)
    found: Mask = (array >= ends.min()) & (array <= ends.max())
    return found


def _aligned(array: Stored, padded: Mask, *, bits: int, high: int, overlay: bool) -> Stored:
    """Values of ``bits`` bits whose highest is bit ``high``.

    The bits above it may contain an overlay or, in signed numbers, copies of the sign. Raises ValueError for anything else,
    and if the values use lower bits than the header states.
    """
    allocated, signed = 8 * array.dtype.itemsize, array.dtype.kind == "i"
    raw = array.view(f"u{array.dtype.itemsize}")
    used = int(np.bitwise_or.reduce(raw, axis=None, where=~padded))
    low = high + 1 - bits
    if low and used and used < 1 << bits and used & ((1 << low) - 1):
        raise ValueError(f"its header says that {bits} bits are stored up to bit {high}, but they are lower")
    extended = signed and not np.any((array >> high) + 1 & ~1, where=~padded)
    if used >> high + 1 and not extended and not overlay:
        raise ValueError(
            f"has values of up to bit {used.bit_length() - 1}, but its header says {bits} bits stored up to bit {high}; "
            "correct Bits Stored and High Bit"
        )
    if not low and (extended or not used >> high + (not signed)):
        return array
    left, right = allocated - 1 - high, allocated - bits
    return ((raw << left).view(array.dtype) >> right).astype(array.dtype)
