"""Decode TIFF and BigTIFF of one page; tags are checked before any strip is decoded."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace
from typing import Any

from PIL import TiffImagePlugin

from knee.images.jpeg import check_scans
from knee.images.raster import ORIENTED, CountedReads, Pixels, check_size, finite, from_pillow

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF and BigTIFF files, in both byte orders."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _FORMAT = 277, 278, 284, 322, 323, 339
_STRIPS, _TILES = (273, 279), (324, 325)
_WHITE_IS_ZERO = 0
_SIGNED = 2
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point"}
_JPEG = (6, 7)
_ZLIB = (8, 32946)
_COMPRESSIONS = {1, 2, 3, 4, 5, *_JPEG, *_ZLIB, 32773}
"""None, CCITT, LZW, JPEG, Deflate and PackBits: the others (LZMA, Zstandard …) could allocate any amount of memory."""


def decode_tiff(data: bytes) -> Pixels:
    """TIFF of one page, up to 32 bit or float. White-is-zero is converted to black-is-zero."""
    if data[:4] == b"MM\0+":
        raise ValueError("is a BigTIFF of big-endian numbers, which is not read; save it as an ordinary TIFF")
    stored = _without_orientation(data)
    try:
        image = TiffImagePlugin.TiffImageFile(CountedReads(stored))
    except SyntaxError as error:
        raise ValueError(_not_read(stored) or f"is a damaged TIFF ({error})") from error
    check_size(image.height, image.width)
    tags = image.tag_v2
    _check_strips(tags, data)
    mode = image.mode
    signed = tags.get(_FORMAT, (1,))[0] == _SIGNED
    numbers = (
        "u4" if mode == "I" and tags.get(_BITS) == (32,) and not signed else "i1" if mode == "L" and signed else None
    )
    pixels = from_pillow(image, stored, numbers=numbers)
    values = pixels.values
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if white_is_zero and mode not in ("1", "L"):  # Pillow converts these itself.
        values = values.max() + values.min() - values
    remarks = pixels.remarks if stored == data else (ORIENTED,)
    return replace(pixels, values=finite(values), inverted_by_file=white_is_zero, remarks=remarks)


def _without_orientation(data: bytes) -> bytes:
    """The file with orientation 1: Pillow would apply any other one, which it does only for TIFF."""
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
    first, step, value = (offset + 8, 20, 12) if big else (offset + 2, 12, 8)
    for entry in range(first, min(first + step * min(count, 1 << 16), len(data) - step + 1), step):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag == _ORIENTATION and kind == 3 and struct.unpack_from(order + "H", data, entry + value)[0] != 1:
            return data[: entry + value] + struct.pack(order + "H", 1) + data[entry + value + 2 :]
    return data


def _not_read(data: bytes) -> str:
    """An error message with the kind of numbers that Pillow does not read; '' if the tags cannot be read either."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
    stream = CountedReads(data)
    stream.seek(tags.next or 0)
    tags.load(stream)
    if not {_WIDTH, _HEIGHT, _BITS} <= set(tags):
        return ""
    bits = "/".join(map(str, dict.fromkeys(tags[_BITS])))
    kind = _FORMATS.get(tags.get(_FORMAT, (1,))[0], "other")
    return f"is a TIFF of {bits}-bit {kind} numbers, which is not read; save it as 8- or 16-bit grey, or 32-bit float"


def _check_strips(tags: Any, data: bytes) -> None:
    """Refuse strips (or tiles) that overlap, end above the last row, or unpack to more than their rows need."""
    compression = tags.get(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise ValueError(f"is a TIFF of compression {compression}; save it uncompressed, or with LZW or Deflate")
    width, height = tags[_WIDTH], tags[_HEIGHT]
    tiled = _TILES[0] in tags
    offsets, counts = (tags.get(tag, ()) for tag in (_TILES if tiled else _STRIPS))
    rows = min(int(tags.get(_TILE_HEIGHT if tiled else _ROWS_PER_STRIP, height)), max(height, 1 << 14))
    columns = min(int(tags.get(_TILE_WIDTH, width)), 1 << 14) if tiled else width
    bits, planes = tags.get(_BITS, (1,)), 1
    if tags.get(_PLANAR, 1) == 2:
        bits, planes = bits[:1], int(tags.get(_SAMPLES, 1))
    if min(rows, columns) < 1:
        raise ValueError("is a damaged TIFF (strips without rows)")
    needed = math.ceil(height / rows) * math.ceil(width / columns) * planes
    if len(offsets) < needed:
        raise ValueError("is a damaged TIFF (its strips end above its last row)")
    parts = [(at, max(0, min(count, len(data) - at))) for at, count in zip(offsets, counts, strict=False)][:needed]
    if sum(count for _, count in parts) > len(data):
        raise ValueError("is a damaged TIFF (its strips overlap)")
    if compression in _JPEG:
        check_scans(math.ceil(data.count(b"\xff\xda") / needed), height, width)
    if compression in _ZLIB:
        most = rows * math.ceil(
            columns * sum(bits) * (1 if len(bits) > 1 else int(tags.get(_SAMPLES, 1)) // planes) / 8
        )
        for at, count in parts:
            _check_zlib(data[at : at + count], most)


def _check_zlib(packed: bytes, most: int) -> None:
    """Verify the checksum of a compressed strip, which the decoder ignores; memory and time stay bounded."""
    unpacker, unpacked = zlib.decompressobj(), 0
    while not unpacker.eof:
        block = unpacker.decompress(packed, 1 << 20)
        unpacked += len(block)
        if unpacked > most + 4096:
            raise ValueError("is a damaged TIFF (a strip unpacks to more than its rows)")
        if not block and not unpacker.eof:
            raise ValueError("is a truncated TIFF (a strip ends early)")
        packed = unpacker.unconsumed_tail
