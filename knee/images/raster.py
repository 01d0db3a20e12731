"""PNG, JPEG, WebP, TIFF and NPY bytes to grey values, in bounded memory, refusing what is damaged.

Headers are checked before any pixel is decoded. Refusals are ValueErrors that say the reason; ``knee.images.read`` adds the
name of the file. Pillow's own plug-ins are called directly: ``Image.open`` warns about large images before one can be
refused.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

Values = npt.NDArray[np.float32]

MOST_PIXELS = 100_000_000
"""Larger images are refused: the largest knee radiographs have some 20 million pixels."""
MOST_SIDE = 10_000
"""Images with a longer side are refused: each is padded to a square before it is made small."""
MOST_BYTES = 1 << 30
"""Larger files of a single image are refused."""

_WHITE_IS_ZERO = 0
_PHOTOMETRIC_TAG = 262
_JPEG_FILLING = 128
_LARGEST_VALUE = 1e10
_COLORED = 0.2
"""Pixels whose channels differ by more than this share of the full range are colored."""
_MOST_COLORED = 0.2
"""The largest share of such pixels in what passes as a grey image with colored marks."""
_ZLIB_COMPRESSIONS = ("tiff_adobe_deflate", "tiff_deflate")


@dataclass(frozen=True)
class Pixels:
    """An image as its file shows it, bright bone on dark ground where the file says how to show it."""

    values: Values
    """(H, W) float32, finite, in the file's own unit."""
    spacing_mm: tuple[float, float] | None
    """Distance of pixel centers down and across; None where the file does not say."""
    laterality: str | None
    """'L' or 'R'; None where the file does not say."""
    inverted_by_file: bool
    """The file stores a negative and says so (MONOCHROME1, white-is-zero); ``values`` are the positive."""


def check_size(height: int, width: int) -> None:
    """Refuse dimensions that no knee image has, before memory is spent on them."""
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
        PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
    except SyntaxError as error:
        raise ValueError(f"is a damaged PNG ({error})") from error
    return _from_pillow(PngImagePlugin.PngImageFile(io.BytesIO(data)), data)


def decode_jpeg(data: bytes) -> Pixels:
    """JPEG, 8 bit. The format has no checksum: damage within the pixel data that keeps its structure goes unnoticed.

    Where the data of an image end early its decoder fills the rest with mid-grey and tells nobody; so an image whose last
    block is exactly that is refused. Zeros after the end marker are padding.
    """
    if b"\xff\xd9" not in data.rstrip(b"\0")[-64:]:
        raise ValueError("is a truncated JPEG (it has no end marker)")
    pixels = _from_pillow(JpegImagePlugin.JpegImageFile(io.BytesIO(data)), data)
    height, width = pixels.values.shape
    if (pixels.values[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :] == _JPEG_FILLING).all():
        raise ValueError(
            "is a JPEG that ends in flat mid-grey, as one with missing data does; save the original as PNG"
        )
    return pixels


def decode_webp(data: bytes) -> Pixels:
    """WebP, still images alone. The decoder makes room for the whole image at once, so sizes are read here first."""
    if len(data) < 30 or struct.unpack("<I", data[4:8])[0] + 8 > len(data) + 1:
        raise ValueError("is a truncated WebP")
    check_size(*_webp_size(data))
    return _from_pillow(WebPImagePlugin.WebPImageFile(io.BytesIO(data)), data)


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


def decode_tiff(data: bytes) -> Pixels:
    """TIFF of one page, 8 or 16 bit or float. White-is-zero is turned into black-is-zero."""
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    check_size(image.height, image.width)
    if max((tile[1][3] for tile in image.tile if tile[1]), default=0) < image.height:
        raise ValueError("is a damaged TIFF (its strips end above its last row)")
    if image.info.get("compression") in _ZLIB_COMPRESSIONS:
        _check_zlib_strips(image, data)
    pixels = _from_pillow(image, data)
    if image.tag_v2.get(_PHOTOMETRIC_TAG) != _WHITE_IS_ZERO:
        return pixels
    values = pixels.values
    if image.mode not in ("1", "L"):  # Pillow turns these by itself.
        values = values.max() + values.min() - values
    return Pixels(values, None, None, inverted_by_file=True)


def _check_zlib_strips(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Verify the checksums of compressed strips and tiles, which the decoder passes over; memory stays bounded."""
    tags = image.tag_v2
    offsets, counts = (tags.get(strips, tags.get(tiles, ())) for strips, tiles in ((273, 324), (279, 325)))
    for offset, count in zip(offsets, counts, strict=True):
        unpacker, rest = zlib.decompressobj(), data[offset : offset + count]
        while not unpacker.eof:
            if not unpacker.decompress(rest, 1 << 20) and not unpacker.eof:
                raise ValueError("is a truncated TIFF (a strip ends early)")
            rest = unpacker.unconsumed_tail


def decode_npy(data: bytes) -> Pixels:
    """A NumPy file with a (H, W) array of numbers; anything that could run code is refused."""
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
    """(H, W) numbers as float32; NaN, infinity, and what no detector measures (a flipped exponent) are refused."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result)).sum())
        raise ValueError(f"has {bad} pixels that are NaN or infinite")
    largest = float(np.abs(result).max(initial=0))
    if largest > _LARGEST_VALUE:
        raise ValueError(f"has pixels of up to {largest:.0e}, which nothing measures; scale them below 1e10")
    return result


def _from_pillow(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    """Grey values of an opened, not yet decoded image.

    Color is turned into luminance, transparency is laid on black. Orientation tags are not followed: masks are drawn on
    the stored pixels.
    """
    check_size(image.height, image.width)
    if getattr(image, "n_frames", 1) != 1:
        raise ValueError(f"holds {getattr(image, 'n_frames', 0)} pictures; save the one that is meant")
    deep_color = len(image.getbands()) > 1 and any("16" in str(tile[3]) for tile in image.tile)
    image.load()
    if image.mode in ("P", "PA"):
        return Pixels(to_grey(np.asarray(image.convert("RGBA"))), None, None, inverted_by_file=False)
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
        raise ValueError(f"has color mode {image.mode}; save it as grey or RGB")
    array = np.asarray(image)
    if deep_color:  # Pillow keeps 8 of the 16 bits of each channel.
        deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if deep is None or deep.shape[:2] != array.shape[:2]:
            raise ValueError("has 16-bit color that cannot be decoded; save it as 16-bit grey")
        array = deep if deep.ndim < 3 else deep[..., [2, 1, 0, 3][: deep.shape[2]]]
    return Pixels(to_grey(array), None, None, inverted_by_file=False)


def to_grey(array: npt.NDArray[Any]) -> Values:
    """(H, W) or (H, W, 2 | 3 | 4) to grey: luminance after ITU-R BT.601, times alpha where there is one.

    A picture in full color is refused: it is an overlay, a screenshot or a photograph, whose luminance is not its intensity.
    Colored marks and the color noise of JPEG pass.
    """
    if array.ndim == 2:
        return finite(array)
    top = float(np.iinfo(array.dtype).max)
    color, alpha = (array, None) if array.shape[2] == 3 else (array[..., :-1], array[..., -1])
    grey = color[..., 0].astype(np.float32)
    # Equal channels keep their exact values.
    if color.shape[2] == 3 and not (
        np.array_equal(color[..., 0], color[..., 1]) and np.array_equal(color[..., 0], color[..., 2])
    ):
        spread = color.max(2).astype(np.float32) - color.min(2)
        share = float((spread > _COLORED * top).mean())
        if share > _MOST_COLORED:
            raise ValueError(
                f"is a picture in color ({share:.0%} of its pixels), not a radiograph or an MR slice; give the original in grey"
            )
        grey = color.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return finite(grey if alpha is None else grey * (alpha.astype(np.float32) / top))
