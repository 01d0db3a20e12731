"""Small files that would take a plain reader minutes or all memory; part of the corpus that ``damage.py`` writes."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from damage import DEEP, GREY, Bad, chunk, dicom, nifti, pillow
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit, RLELossless

MANY = 300_000


def tiff(
    strips: list[tuple[int, int]], packed: bytes, *, size: tuple[int, int], rows: int, compression: int = 8
) -> bytes:
    """A TIFF of 8-bit grey whose ``strips`` (offset in ``packed``, length) are what they are said to be."""
    height, width = size
    at = 8 + len(packed)
    offsets, counts = ([strip[part] + 8 * (part == 0) for strip in strips] for part in (0, 1))
    tables = struct.pack(f"<{2 * len(strips)}I", *offsets, *counts)
    single = len(strips) == 1
    places = (offsets[0], counts[0]) if single else (at, at + 4 * len(strips))
    values = [(256, width), (257, height), (258, 8), (259, compression), (262, 1), (273, places[0]), (277, 1), (278, rows),
              (279, places[1])]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 4, len(strips) if tag in (273, 279) else 1, value) for tag, value in values
    )
    return b"II*\0" + struct.pack("<I", at + len(tables)) + packed + tables + struct.pack("<H", 9) + entries + bytes(4)


def directories(count: int) -> bytes:
    """A TIFF of ``count`` pages, each nothing but its directory."""
    whole = tiff([(0, 64)], bytes(64), size=(8, 8), rows=8, compression=1)
    place = struct.unpack_from("<I", whole, 4)[0]
    step, page = 2 + 12 * 9 + 4, whole[struct.unpack_from("<I", whole, 4)[0] : -4]
    return whole[:place] + b"".join(page + struct.pack("<I", place + step * number) for number in range(1, count + 1))


def webp(width: int, height: int, flags: int, body: bytes) -> bytes:
    """A WebP with a canvas of any size."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    parts = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + sides + body
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def webp_files() -> Iterator[Bad]:
    """Large canvases around a tiny picture, still and moving."""
    inner = pillow(np.zeros((8, 8, 3), np.uint8), "WEBP", lossless=True)[12:]
    frame = struct.pack("<I", 16 + len(inner)) + bytes(6) + b"\7\0\0" * 2 + b"\1\0\0\0" + inner
    start = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    yield Bad("canvas.webp", webp(10_000, 10_000, 0, inner), "hostile")
    for frames in (1, 2_000):
        yield Bad(f"canvas{frames}.webp", webp(10_000, 10_000, 2, start + (b"ANMF" + frame) * frames), "hostile")


def jpeg_files(jpeg: bytes) -> Iterator[Bad]:
    """Many scans, segments and fillings."""
    stream = io.BytesIO()
    Image.new("L", (3_000, 3_000), 77).save(stream, "JPEG", progressive=True)
    progressive = stream.getvalue()
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    for scans in (200, 2_000):
        yield Bad(f"scans{scans}.jpg", progressive[:-2] + last * scans + b"\xff\xd9", "hostile")
    data_at = jpeg.index(b"\xff\xda") + 10
    yield Bad("segments.jpg", jpeg[:2] + b"\xff\xfe\0\3a" * MANY + jpeg[2:], "hostile")
    yield Bad("filling.jpg", jpeg[:2] + b"\xff" * MANY * 10 + jpeg[2:], "hostile")
    yield Bad("filling-in-scan.jpg", jpeg[:data_at] + b"\xff" * MANY * 10 + b"\0" + jpeg[data_at:], "hostile")


def dicom_files(jpeg: bytes) -> Iterator[Bad]:
    """Zeros after the pixels, floods of elements, items and fragments, and RLE that unpacks to far more."""
    whole, raw = dicom(DEEP), DEEP.tobytes()
    for frames in (1, 2, 5_000):
        yield Bad(f"zeros{frames}.dcm", dicom(DEEP, PixelData=raw + bytes(frames * len(raw))), "hostile", "deep")
        yield Bad(f"zeros-after{frames}.dcm", whole + bytes(frames * len(raw)), "hostile", "deep")
    yield Bad("more-pixels.dcm", dicom(DEEP, PixelData=raw * 2), "hostile")
    place = whole.index(b"\x28\0\x02\0US")
    element = struct.pack("<HH2sH", 0x21, 0x10, b"LO", 0)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    sequence = struct.pack("<HH2sHI", 0x21, 0x20, b"SQ", 0, 8 * MANY) + item * MANY
    for name, flood in (("elements", element * MANY), ("items", sequence)):
        yield Bad(f"{name}.dcm", whole[:place] + flood + whole[place:], "hostile", "deep")
    coded = dicom(GREY, syntax=JPEGBaseline8Bit, frame=jpeg)
    yield Bad("fragments.dcm", coded[:-8] + item * MANY + coded[-8:], "hostile", "jpeg")
    for name, segment in (("runs", b"\x81\0" * 600_000), ("literals", b"\0a" * 2_000_000)):
        frame = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
        yield Bad(
            f"rle-{name}.dcm", dicom(np.zeros((9_000, 9_000), np.uint16), syntax=RLELossless, frame=frame), "hostile"
        )


def hostile_files(jpeg: bytes) -> Iterator[Bad]:
    """All of them; ``jpeg`` is a sound one of grey."""
    rng = np.random.default_rng(9)
    strip = zlib.compress(bytes(40 << 20), 9)
    ends = [(len(strip) * number, len(strip)) for number in range(20)]
    for name, strips, packed in (
        ("same-strip.tif", [(0, len(strip))] * 1_000, strip),
        ("long-strips.tif", ends, strip * 20),
        ("one-strip.tif", [(0, len(strip))], strip),
    ):
        rows = 1_000 // len(strips)
        yield Bad(name, tiff(strips, packed, size=(1_000, 1_000), rows=rows), "hostile")
    yield Bad("lzma.tif", tiff([(0, 900)], rng.bytes(900), size=(9, 9), rows=9, compression=34925), "hostile")
    yield Bad("pages.tif", directories(30_000), "hostile")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 64, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(49 * 64)))
    for name, flood in (("text", chunk(b"tEXt", b"a\0b")), ("data", chunk(b"IDAT", b""))):
        data = b"\x89PNG\r\n\x1a\n" + header + flood * MANY + rows + chunk(b"IEND", b"")
        yield Bad(f"chunks-{name}.png", data, "hostile")
    volume = nifti(DEEP.astype(np.int16))
    packed, empty = gzip.compress(volume, mtime=0), gzip.compress(b"", mtime=0)
    single = b"".join(gzip.compress(volume[at : at + 1], mtime=0) for at in range(len(volume)))
    members = {"front": empty * MANY + packed, "back": packed + empty * MANY, "bytes": single}
    members["zeros"] = packed + bytes(100 * MANY)
    for name, data in members.items():
        yield Bad(f"members-{name}.nii.gz", data, "hostile", "deep")
    yield from webp_files()
    yield from jpeg_files(jpeg)
    yield from dicom_files(jpeg)
