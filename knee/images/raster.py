"""Decode PNG, JPEG, WebP, TIFF and NPY to grey values, in bounded time and memory; damaged files are refused.

Headers are checked before any pixel is decoded. Refusals are ValueErrors that state the reason; ``knee.images.read`` adds
the file's name. Pillow's plug-ins are called directly: ``Image.open`` warns about large images before one can be refused.
"""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from knee.images.jpeg import check_scans, jpeg_structure

Values = npt.NDArray[np.float32]

MOST_PIXELS = 100_000_000
"""Larger images are refused: the largest knee radiographs have some 20 million pixels."""
# Pillow warns above its own, slightly lower limit.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or MOST_PIXELS, MOST_PIXELS)
MOST_SIDE = 10_000
"""Images with a longer side are refused: images are padded to a square before they are resized."""
MOST_BYTES = 1 << 29
"""Larger files of a single image are refused."""
MOST_PARTS = 200_000
"""Files read in more pieces (chunks, segments, elements) are refused: the parsers are written in Python."""

ORIENTED = (
    "with an orientation tag, which is ignored (masks belong to the stored pixels): rotate the pixels where needed"
)
"""A phrase that follows a number of images, like the other remarks."""
_TRAILING = "with data after the end of the JPEG, which is ignored"

_MOST_DEEP_COLOR = 25_000_000
_ORIENTATION_TAG = 274
_JPEG_FILLING = 128
_MOST_DECODED_TWICE = 30_000_000
_LARGEST_VALUE = 1e10
_COLORED = 0.2
"""Pixels whose channels differ by more than this fraction of the full range count as colored."""
_MOST_COLORED = 0.2
"""The largest fraction of colored pixels in a grey image with colored marks."""
_BAND = 256
"""Rows converted at a time, so that temporary arrays stay small."""


@dataclass(frozen=True)
class Pixels:
    """The grey values of an image file, with bright bone on a dark background if the file declares how to display it.

    Orientation tags are ignored in all formats: pixels stay as stored, because masks are drawn on the stored pixels.
    """

    values: Values
    """(H, W) float32, finite, in the file's own unit."""
    spacing_mm: tuple[float, float] | None
    """Distance of pixel centers down and across; None if the file does not give it."""
    laterality: str | None
    """'L' or 'R'; None if the file does not give it."""
    inverted_by_file: bool
    """Whether the file declares a negative (MONOCHROME1, white-is-zero); ``values`` are the positive."""
    place: npt.NDArray[np.float64] | None = None
    """(3, 3): in mm (right, anterior, superior) the first pixel's position, the step down and the step across as rows; all 0
    for a NIfTI file without patient coordinates; None for other formats."""
    modality: str = ""
    """The modality that a DICOM file gives ('DX', 'MR'); empty for other formats."""
    remarks: tuple[str, ...] = ()
    """Ignored properties of the file, as phrases that follow 'images' ('with an orientation tag, …')."""


class CountedReads(io.BytesIO):
    """A file's content; reading it in too many pieces, which would take minutes, is refused."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        """As in BytesIO. Raises ValueError after ``MOST_PARTS`` reads."""
        self.reads += 1
        if self.reads > MOST_PARTS:
            raise ValueError(f"is made of more than {MOST_PARTS:,} parts")
        return super().read(size)


def check_size(height: int, width: int) -> None:
    """Refuse dimensions that are too large for a knee image, before memory is allocated."""
    if height < 1 or width < 1:
        raise ValueError(f"its header says {width} × {height} pixels")
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"its header says {width} × {height} pixels, more than {MOST_PIXELS // 10**6} million; crop it"
        )
    if max(height, width) > MOST_SIDE:
        raise ValueError(
            f"its header says {width} × {height} pixels, more than {MOST_SIDE:,} on one side; crop it to the knee"
        )


def decode_png(data: bytes) -> Pixels:
    """PNG, 8 or 16 bit; every checksum is verified."""
    try:
        PngImagePlugin.PngImageFile(CountedReads(data)).verify()
    except SyntaxError as error:
        raise ValueError(f"is a damaged PNG ({error})") from error
    return from_pillow(PngImagePlugin.PngImageFile(CountedReads(data)), data)


def decode_jpeg(data: bytes) -> Pixels:
    """JPEG, 8 bit. The format has no checksum: damage within the pixel data that keeps its structure goes unnoticed.

    If the data end early, decoders silently fill the rest with mid-grey. An image that ends in mid-grey is decoded again
    with extra data before its end marker: a complete image does not change. Trailing bytes are reported as a remark.
    """
    structure = jpeg_structure(data)
    pixels = _decode_jpeg(data, structure.scans)
    height, width = pixels.values.shape
    corner = (slice((height - 1) // 8 * 8, None), slice((width - 1) // 8 * 8, None))
    if (pixels.values[corner] == _JPEG_FILLING).all():
        if height * width > _MOST_DECODED_TWICE:
            raise ValueError("is a truncated JPEG, or ends in flat mid-grey as one does; save the original as PNG")
        more = np.random.default_rng(0).integers(0, 255, 1 << 16, np.uint8).tobytes()  # no 255: no markers
        longer = _decode_jpeg(data[: structure.end - 2] + more + b"\xff\xd9", structure.scans)
        if not np.array_equal(longer.values, pixels.values):
            raise ValueError("is a truncated JPEG (its last pixels are missing); save the original again")
    if not data[structure.end :].strip(b"\0"):
        return pixels
    return Pixels(pixels.values, None, None, inverted_by_file=False, remarks=(*pixels.remarks, _TRAILING))


def _decode_jpeg(data: bytes, scans: int) -> Pixels:
    image = JpegImagePlugin.JpegImageFile(CountedReads(data))
    check_scans(scans, image.height, image.width)
    return from_pillow(image, data)


def decode_webp(data: bytes) -> Pixels:
    """WebP, still images only. The decoder allocates the whole image at once, so sizes are checked here first."""
    if len(data) < 30 or struct.unpack("<I", data[4:8])[0] + 8 > len(data) + 1:
        raise ValueError("is a truncated WebP")
    if data[12:16] == b"VP8X" and data[20] & 2:
        raise ValueError("is an animation; save the frame that you need")
    check_size(*_webp_size(data))
    return from_pillow(WebPImagePlugin.WebPImageFile(CountedReads(data)), data)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[8:10], "little") & 0x3FFF, int.from_bytes(body[6:8], "little") & 0x3FFF
    raise ValueError("is a damaged WebP (unknown kind)")


def decode_npy(data: bytes) -> Pixels:
    """A NumPy file with an (H, W) array of numbers; anything that could execute code is refused."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"is an NPY file of version {version}; save it with numpy.save")
    length = struct.unpack("<H" if version == (1, 0) else "<I", data[8 : 10 if version == (1, 0) else 12])[0]
    if length > 10_000:
        raise ValueError(f"is an NPY file with a header of {length} bytes")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if len(shape) != 2:
        raise ValueError(f"holds an array of shape {shape}; an image is (height, width)")
    check_size(*shape)
    if dtype.kind not in "buif" or dtype.hasobject:
        raise ValueError(f"holds {dtype}, not whole or floating-point numbers")
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError("is truncated, or longer than its header says")
    values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return Pixels(finite(values), None, None, inverted_by_file=False)


def finite(values: npt.NDArray[Any]) -> Values:
    """(H, W) numbers as float32; NaN, infinity, and implausibly large values (a flipped exponent) are refused."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result)).sum())
        raise ValueError(f"has {bad} pixels that are NaN or infinite")
    largest = max(float(result.max(initial=0)), -float(result.min(initial=0)))
    if largest > _LARGEST_VALUE:
        raise ValueError(f"has pixels of up to {largest:.0e}, which is implausible; scale them below 1e10")
    return result


def from_pillow(image: ImageFile.ImageFile, data: bytes, *, numbers: str | None = None) -> Pixels:
    """Grey values of an opened, not yet decoded image: color becomes luminance, transparency becomes black.

    ``numbers``: the dtype of the stored bits, if Pillow interprets them as another dtype of the same size.
    """
    check_size(image.height, image.width)
    if getattr(image, "n_frames", 1) != 1:
        raise ValueError(f"holds {getattr(image, 'n_frames', 0)} pictures; save the one that you need")
    deep_color = len(image.getbands()) > 1 and any("16" in str(tile[3]) for tile in image.tile)
    if deep_color and image.height * image.width > _MOST_DEEP_COLOR:
        raise ValueError(f"has 16-bit color and more than {_MOST_DEEP_COLOR // 10**6} million pixels; save it as grey")
    remarks = (ORIENTED,) if _is_oriented(image) else ()
    image.load()
    if image.mode in ("P", "PA"):
        array = np.asarray(image.convert("RGBA"))
    elif image.mode in ("1", "L", "LA", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        array = _deep(data, image.size) if deep_color else np.asarray(image)
        array = array if numbers is None else array.view(numbers)
    else:
        raise ValueError(f"has color mode {image.mode}; save it as grey or RGB")
    image.close()
    return Pixels(to_grey(array), None, None, inverted_by_file=False, remarks=remarks)


def _is_oriented(image: Image.Image) -> bool:
    with suppress(Exception):  # Damaged metadata do not make the pixels unusable.
        return bool(image.getexif().get(_ORIENTATION_TAG, 1) != 1)
    return False


def _deep(data: bytes, size: tuple[int, int]) -> npt.NDArray[Any]:
    """16-bit color, of which Pillow would keep only 8 bits per channel."""
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.shape[:2] != size[::-1]:
        raise ValueError("has 16-bit color that cannot be decoded; save it as 16-bit grey")
    return np.asarray(deep if deep.ndim < 3 else deep[..., [2, 1, 0, 3][: deep.shape[2]]])


def to_grey(array: npt.NDArray[Any]) -> Values:
    """(H, W) or (H, W, 2 | 3 | 4) to grey: luminance after ITU-R BT.601, times alpha if there is one.

    A color picture is refused: it is an overlay, a screenshot or a photograph, whose luminance is not the signal intensity.
    Colored marks and the color noise of JPEG are accepted. Equal channels keep their exact values.
    """
    if array.ndim == 2:
        return finite(array)
    top = float(np.iinfo(array.dtype).max)
    color, alpha = (array, None) if array.shape[2] == 3 else (array[..., :-1], array[..., -1])
    first = color[..., 0]
    grey = all(np.array_equal(first, color[..., channel]) for channel in range(1, color.shape[2]))
    result = np.empty(first.shape, np.float32)
    colored = 0
    for start in range(0, len(array), _BAND):
        rows = slice(start, start + _BAND)
        result[rows] = first[rows]
        if not grey:
            spread = color[rows].max(2).astype(np.float32) - color[rows].min(2)
            colored += int((spread > _COLORED * top).sum())
            result[rows] = color[rows].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        if alpha is not None:
            result[rows] *= alpha[rows].astype(np.float32) / top
    if colored > _MOST_COLORED * first.size:
        raise ValueError(
            f"is a picture in color ({colored / first.size:.0%} of its pixels), not a radiograph or an MR slice; give the "
            "original in grey"
        )
    return finite(result)
