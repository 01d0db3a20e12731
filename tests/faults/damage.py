"""Writes the corpus of bad files: ``python damage.py FOLDER [EVERY]``.

Good files of every format that is read, each damaged in many ways, and an ``index.json`` that says of each what must
come of it:

- ``good``: the name of an array that must be read, or the file be refused; None: the file must be refused.
- ``may_differ``: damage that its format has no means to notice (a flipped bit among pixels without a checksum).
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

GREY = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (64, 48), np.uint8), (9, 9), 0)
GREY = cv2.normalize(GREY, None, 8, 247, cv2.NORM_MINMAX)
DEEP = GREY.astype(np.uint16) * np.uint16(16)
FLOAT = GREY.astype(np.float32) / 7


class Bad(NamedTuple):
    """A damaged file: its name, its bytes, the damage, and what must come of it."""

    name: str
    data: bytes
    damage: str
    good: str | None = None
    may_differ: bool = False
    slice: str = ""


def pillow(array: Any, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def nifti(array: Any) -> bytes:
    data: bytes = nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 3, 1])).to_bytes()
    return data


def dicom(array: Any, *, syntax: str = ExplicitVRLittleEndian, frame: bytes | None = None, **fields: Any) -> bytes:
    """A radiograph; ``frame`` is its encoded picture."""
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3.4"
    packed = frame is None and syntax in (RLELossless, JPEGLSLossless)
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if packed else syntax
    image.Modality, image.PatientID, image.ImageLaterality, image.ImagerPixelSpacing = "DX", "marker", "L", [0.2, 0.2]
    image.Rows, image.Columns = array.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated = image.BitsStored = array.dtype.itemsize * 8
    image.HighBit = image.BitsStored - 1
    image.PixelData = array.tobytes() if frame is None else encapsulate([frame])
    if frame is not None:
        image["PixelData"].VR = "OB"
    for name, value in fields.items():
        setattr(image, name, value)
    if packed:
        image.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def good_files() -> dict[str, tuple[bytes, str]]:
    """Name → bytes, and which picture they show."""
    three = np.stack([GREY] * 3, 2)
    volume = np.stack([DEEP.astype(np.int16) // 2, DEEP.astype(np.int16), DEEP.astype(np.int16) // 3], 2)
    jpeg = pillow(GREY, "JPEG", quality=90)
    return {
        "grey.png": (pillow(GREY, "PNG"), "grey"),
        "deep.png": (pillow(DEEP, "PNG"), "deep"),
        "color.png": (pillow(three, "PNG"), "grey"),
        "palette.png": (pillow(Image.fromarray(GREY).convert("P"), "PNG"), "grey"),
        "grey.jpg": (jpeg, "jpeg"),
        "color.jpg": (pillow(three, "JPEG", quality=90), "color_jpeg"),
        "progressive.jpg": (pillow(GREY, "JPEG", quality=90, progressive=True), "jpeg"),
        "restarts.jpg": (pillow(GREY, "JPEG", quality=90, restart_marker_rows=1), "jpeg"),
        "lossy.webp": (pillow(three, "WEBP", quality=90), "webp"),
        "lossless.webp": (pillow(three, "WEBP", lossless=True), "grey"),
        "raw.tif": (pillow(GREY, "TIFF"), "grey"),
        "lzw.tif": (pillow(DEEP, "TIFF", compression="tiff_lzw"), "deep"),
        "deflate.tif": (pillow(GREY, "TIFF", compression="tiff_adobe_deflate"), "grey"),
        "float.tif": (pillow(FLOAT, "TIFF"), "float"),
        "bytes.npy": (npy(GREY), "grey"),
        "float.npy": (npy(FLOAT), "float"),
        "slice.nii": (nifti(DEEP.astype(np.int16)), "deep"),
        "volume.nii": (nifti(volume), "deep"),
        "volume.nii.gz": (gzip.compress(nifti(volume), mtime=0), "deep"),
        "plain.dcm": (dicom(DEEP), "deep"),
        "implicit.dcm": (dicom(GREY, syntax=ImplicitVRLittleEndian), "grey"),
        "rle.dcm": (dicom(DEEP, syntax=RLELossless), "deep"),
        "jpeg.dcm": (dicom(GREY, syntax=JPEGBaseline8Bit, frame=jpeg), "jpeg"),
        "jpegls.dcm": (dicom(DEEP, syntax=JPEGLSLossless), "deep"),
    }


def damaged(name: str, data: bytes, shown: str, rng: np.random.Generator) -> Iterator[Bad]:
    """What may happen to any file: cut short, bits flipped, parts zeroed, called something else."""
    suffix = ".nii.gz" if name.endswith(".nii.gz") else f".{name.rpartition('.')[2]}"
    stem = name.removesuffix(suffix)
    index = "#1" if stem == "volume" else ""

    def bad(number: int, damage: str, changed: bytes, *, may_differ: bool = False, suffix: str = suffix) -> Bad:
        called = f"{stem}-{damage.replace(' ', '_')}-{number}{suffix}"
        return Bad(called, changed, damage, shown, may_differ, index)

    lengths = {1, 4, 10, 100, *rng.integers(11, len(data), 3).tolist(), len(data) // 2, len(data) - 20, len(data) - 1}
    for number, length in enumerate(sorted(lengths)):
        yield bad(number, "truncated", data[:length])
    for number in range(12):
        place = int(rng.integers(len(data)) if number % 3 else rng.integers(min(400, len(data))))
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bad(number, "bit flipped", bytes(changed), may_differ=True)
    for number in range(3):
        place = int(rng.integers(len(data) - 16))
        yield bad(number, "bytes zeroed", data[:place] + bytes(16) + data[place + 16 :], may_differ=True)
    yield bad(0, "all zero", bytes(len(data)))
    yield bad(0, "empty", b"")
    yield bad(0, "header gone", bytes(64 if "dcm" not in name else 140) + data[64 if "dcm" not in name else 140 :])
    other = ".jpg" if suffix != ".jpg" else ".png"
    yield bad(0, "wrong extension", data, suffix=other)
    yield from (bad(0, damage, changed, may_differ=True) for damage, changed in transfers(data, rng))
    yield bad(0, "written twice", data + data)


def transfers(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """What copying and old disks do: line ends changed, blocks exchanged or missing, a number of all ones."""
    yield "copied as text", data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    first, second = sorted(int(place) for place in rng.integers(0, len(data) // 64, 2) * 64)
    block, other = data[first : first + 64], data[second : second + 64]
    yield "blocks exchanged", data[:first] + other + data[first + 64 : second] + block + data[second + 64 :]
    yield "number of all ones", patched(data, int(rng.integers(8, len(data) - 4)), b"\xff" * 4)
    yield "hole", data[: len(data) // 3] + data[len(data) // 2 :]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, before: bytes = b"") -> bytes:
    """A PNG of 8-bit grey with a header that says ``width`` and ``height``, whatever ``rows`` hold."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = before + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def patched(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def gzip_bomb() -> bytes:
    """4 MiB that unpack to 4 GiB."""
    return gzip.compress(bytes(16 << 20), mtime=0) * 256


def zlib_bomb() -> bytes:
    """As ``gzip_bomb``, as one stream."""
    packer = zlib.compressobj(9)
    first, again = (packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * 255 + packer.flush()


_ZEROS = bytes(4_000_000)


def absurd_files(good: dict[str, tuple[bytes, str]]) -> Iterator[Bad]:
    """Sizes that nobody's knee has, and files that unpack to more than they are."""
    # Axes beyond the number of axes do not count, and a strip may be declared longer than its rows need.
    harmless = {"axis3-30000.nii": "deep", "axis5-9.nii": "deep", "tag279-2147483647-raw.tif": "grey"}
    for name, data in {**_absurd_rasters(good), **_absurd_arrays(good), **_absurd_dicom()}.items():
        yield Bad(f"absurd-{name}", data, "absurd size", harmless.get(name))


def _absurd_rasters(good: dict[str, tuple[bytes, str]]) -> dict[str, bytes]:
    text = chunk(b"zTXt", b"note\0\0" + zlib_bomb())
    profile = chunk(b"iCCP", b"profile\0\0" + zlib_bomb())
    files = {
        f"{w}x{h}.png": png(w, h, _ZEROS) for w, h in [(0, 9), (1, 2**31 - 1), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
    }
    files |= {"wide.png": png(2**31 - 1, 1, _ZEROS), "tall.png": png(10_000, 9_999, _ZEROS)}
    files |= {"text.png": png(48, 64, b"", before=text), "profile.png": png(48, 64, b"", before=profile)}
    for name in ("grey.jpg", "progressive.jpg", "color.jpg"):
        data = good[name][0]
        frame = data.index(b"\xff\xc2" if name.startswith("prog") else b"\xff\xc0") + 5
        for height, width in [(65_500, 65_500), (9_900, 9_900), (0, 48), (64, 0), (64, 4_000)]:
            files[f"{height}x{width}-{name}"] = patched(data, frame, struct.pack(">HH", height, width))
    for name in ("raw.tif", "lzw.tif", "deflate.tif"):
        data = good[name][0]
        tags = [(256, 2**31 - 1), (257, 2**31 - 1), (256, 9_000), (257, 9_000), (277, 60_000), (279, 2**31 - 1)]
        for tag, value in tags:
            entries = [data.find(struct.pack("<HHI", tag, kind, 1)) for kind in (3, 4)]
            if max(entries) >= 0:
                files[f"tag{tag}-{value}-{name}"] = patched(data, max(entries) + 2, struct.pack("<HII", 4, 1, value))
    return files


def _absurd_arrays(good: dict[str, tuple[bytes, str]]) -> dict[str, bytes]:
    files = {}
    shapes = ["(1000000000, 1000000000)", "(9999, 9999)", "(-1, 5)", "(64,)", "(64, 48, 1)", "(0, 0)", "((1, 2), 3)"]
    for shape in shapes:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        files[f"shape{len(files)}.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + _ZEROS[:3072]
    files["nested.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", 9_000) + b"(" * 9_000
    plain = good["slice.nii"][0]
    for axis, size in [(1, 32_767), (1, -5), (2, 0), (3, 30_000), (0, 200), (5, 9)]:
        files[f"axis{axis}-{size}.nii"] = patched(plain, 40 + 2 * axis, struct.pack("<h", size))
    for value in (np.inf, np.nan, -1.0, 1e30, 3e9):
        files[f"offset{value}.nii"] = patched(plain, 108, struct.pack("<f", value))
        files[f"offset{value}.nii.gz"] = gzip.compress(files[f"offset{value}.nii"], mtime=0)
    files["bomb.nii.gz"] = gzip.compress(plain, mtime=0) + gzip_bomb()
    files["zeros.nii.gz"] = gzip_bomb()
    huge = patched(patched(plain, 42, struct.pack("<hhh", 30_000, 3_000, 6_000)), 40, struct.pack("<h", 3))
    files["huge.nii.gz"] = gzip.compress(huge + _ZEROS, mtime=0)
    return files


def _absurd_dicom() -> dict[str, bytes]:
    files = {}
    for rows, columns in [(65_535, 65_535), (9_999, 9_999), (0, 48), (65, 48)]:
        files[f"{rows}x{columns}.dcm"] = dicom(DEEP, Rows=rows, Columns=columns)
        files[f"{rows}x{columns}-rle.dcm"] = (
            dicom(DEEP, syntax=RLELossless)
            .replace(
                struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 64), struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, rows)
            )
            .replace(
                struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 48), struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, columns)
            )
        )
    files["deflated.dcm"] = dicom(np.zeros((4_000, 4_000), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    files["nested.dcm"] = (
        dicom(DEEP)[:400]
        + struct.pack("<HH2sHIHHI", 0x40, 0x275, b"SQ", 0, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1) * 3_000
    )
    files["frames.dcm"] = dicom(DEEP, NumberOfFrames=2**31 - 1)
    return files


def foreign_files() -> Iterator[Bad]:
    """Files of another kind under an image's name."""
    contents = {
        "text": b"Dear colleague,\n" * 40,
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 10,
        "archive": b"PK\3\4" + bytes(600),
        "program": b"\x7fELF" + bytes(600),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "pickle": b"\x80\x04\x95" + bytes(600),
        "noise": np.random.default_rng(1).bytes(2_000),
    }
    suffixes = (".png", ".jpg", ".webp", ".tif", ".npy", ".nii", ".nii.gz", ".dcm")
    for number, (kind, data) in enumerate(contents.items()):
        for suffix in (suffixes[number], suffixes[(number + 3) % 8]):
            yield Bad(f"{kind}{suffix}", data, "another kind")
    objects = io.BytesIO()
    np.save(objects, np.array([[{"a": 1}] * 4] * 4), allow_pickle=True)
    yield Bad("objects.npy", objects.getvalue(), "another kind")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        spoiled = FLOAT.copy()
        spoiled[3, 4] = value
        yield Bad(f"{name}.npy", npy(spoiled), "not a number")
        yield Bad(f"{name}.tif", pillow(spoiled, "TIFF"), "not a number")
        yield Bad(f"{name}.nii", nifti(spoiled), "not a number")


def write_links(folder: Path, outside: Path) -> Iterator[dict[str, Any]]:
    """Links that lead elsewhere; those in ``scan…`` lie in a folder that is scanned."""
    outside.mkdir()
    (outside / "secret.png").write_bytes(pillow(GREY, "PNG"))
    targets: dict[str, str | Path] = {
        "nowhere": "gone.png", "itself": "scan-itself.png", "folder": outside, "device": "/dev/zero",
        "outside": outside / "secret.png", "above": f"../../{outside.name}/secret.png",
    }  # fmt: skip
    for name, target in targets.items():
        place = folder / f"scan-{name}"
        place.mkdir(parents=True)
        (place / "own.png").write_bytes(pillow(GREY, "PNG"))
        (place / f"scan-{name}.png").symlink_to(target)
        yield {"path": str(place), "damage": "link", "good": None, "may_differ": False, "scan": True}
        if name not in ("outside", "above"):
            yield {"path": str(place / f"scan-{name}.png"), "damage": "link", "good": None, "may_differ": False}


def write_corpus(folder: Path, every: int = 1) -> list[dict[str, Any]]:
    """Write all files below ``folder``, or every so-manieth; returns the index."""
    from hostile import hostile_files  # it builds on this module

    rng = np.random.default_rng(0)
    good = good_files()
    files = folder / "files"
    files.mkdir(parents=True)
    index: list[dict[str, Any]] = []
    for name, (data, shown) in good.items():
        (files / name).write_bytes(data)
        path = str(files / name) + ("#1" if "volume" in name else "")
        index.append({"path": path, "damage": "none", "good": shown, "may_differ": False})
    several = [bad for name, (data, shown) in good.items() for bad in damaged(name, data, shown, rng)]
    hostile = hostile_files(good["grey.jpg"][0])
    for bad in [*several, *absurd_files(good), *foreign_files(), *hostile][::every]:
        (files / bad.name).write_bytes(bad.data)
        path = f"{files / bad.name}{bad.slice}"
        index.append({"path": path, "damage": bad.damage, "good": bad.good, "may_differ": bad.may_differ})
    index += write_links(folder / "links", folder / "outside")
    pictures = {
        "grey": GREY, "deep": DEEP, "float": FLOAT,
        "jpeg": np.asarray(Image.open(io.BytesIO(good["grey.jpg"][0]))),
        "color_jpeg": np.asarray(Image.open(io.BytesIO(good["color.jpg"][0])).convert("L")),
        "webp": np.asarray(Image.open(io.BytesIO(good["lossy.webp"][0])).convert("L")),
    }  # fmt: skip
    for name, array in pictures.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    return index


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "index.json").write_text(json.dumps(write_corpus(target, *map(int, sys.argv[2:]))))
