"""Read slices of NIfTI files: nibabel reads headers, pixels are read plane by plane in bounded time and memory."""

from __future__ import annotations

import io
import math
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import io_orientation

from knee.images.raster import Pixels, check_size, finite

MOST_VOLUME_BYTES = 1 << 30
"""Larger volumes are refused."""
_LONGEST_HEADER = 16 << 20
_LONGEST_AXIS = 32_767
_BLOCK = 1 << 16
_MOST_MEMBERS = 1000
_SMALLEST_MEMBER = 1 << 14
"""Minimum average size in bytes of the further members of a gzip file."""


class SliceView(NamedTuple):
    """How slices are taken from a volume and oriented."""

    axis: int
    """Slices are numbered along this axis of the array."""
    down: int
    """The axis of the array that is vertical in the image."""
    across: int
    flip_down: bool
    flip_across: bool


def is_nifti(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (512 bytes) is a NIfTI file, or compressed and therefore possibly one."""
    return head[:2] == b"\x1f\x8b" or head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti(path: Path, index: int | None) -> Pixels:
    """A slice of a NIfTI file; ``index`` (from 0, in the file's order) may be None if there is only one slice.

    If the affine is missing, or only a positive scaling with its origin on the third axis (as written by software without
    patient coordinates, and for slices cut from such volumes), the array keeps its orientation: first axis down, second
    across, slices along the third. With any other affine, slices are perpendicular to the axis of the widest spacing and
    oriented as readers see them: head up (anterior up in axial slices), anterior to the left in sagittal slices, the
    patient's right to the left in the others.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        header = parse_header(_stream(file, packed=packed).read(540))
        shape = volume_shape(header)
        affine = volume_affine(header)
        view = slice_view(shape, affine)
        count = shape[view.axis]
        if index is None and count > 1:
            raise ValueError(
                f"has {count} slices; write one, #0 to #{count - 1}, after the file's name, or choose several with --slices "
                "middle:20 (dcmt manifest, dcmt predict)"
            )
        if (index or 0) >= count:
            raise ValueError(f"has slices #0 to #{count - 1} but no #{index}")
        plane = _read_slice(_stream(file, packed=packed), header, shape, view.axis, index or 0)
    slope, intercept = header.get_slope_inter()
    values = plane * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)
    values = values.T if view.down > view.across else values
    values = values[:: -1 if view.flip_down else 1, :: -1 if view.flip_across else 1]
    place = _place(shape, affine, view, index or 0)
    return Pixels(finite(values), _spacing(header, affine, view), None, inverted_by_file=False, place=place)


def slice_count(path: Path) -> int:
    """How many slices a NIfTI file has, according to its header; 1 for other and unreadable files."""
    # Damaged files can raise almost any exception; the error is reported when the image is read.
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if not is_nifti(head):
                return 1
            header = parse_header(_stream(file, packed=head[:2] == b"\x1f\x8b").read(540))
            shape = volume_shape(header)
            return shape[slice_view(shape, volume_affine(header)).axis]
    except Exception:
        return 1


def _stream(file: IO[bytes], *, packed: bool) -> IO[bytes]:
    """The content of an opened file from its start."""
    file.seek(0)
    return io.BufferedReader(_Unpacked(file), _BLOCK) if packed else file


class _Unpacked(io.RawIOBase):
    """The content of a gzip file of one or more members, checksums verified; zeros after the last one are padding.

    A file of very many small members, which would take minutes to unpack, is refused.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unpacker = zlib.decompressobj(wbits=31)
        self._packed = b""
        self._members = 1
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._unpacker.eof and not self._next_member():
                return 0
            self._packed = self._packed or self._file.read(_BLOCK)
            data = self._unpacker.decompress(self._packed, len(buffer))
            if not self._packed and not data and not self._unpacker.eof:
                raise ValueError("is truncated (its compressed data end early)")
            self._packed = self._unpacker.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                self._unpacked += len(data)
                return len(data)

    def _next_member(self) -> bool:
        packed = self._unpacker.unused_data.lstrip(b"\0")
        while not packed and (block := self._file.read(_BLOCK)):
            packed = block.lstrip(b"\0")
        if not packed:
            return False
        self._members += 1
        if self._members > _MOST_MEMBERS + self._unpacked // _SMALLEST_MEMBER:
            raise ValueError(f"is a gzip file of more than {self._members - 1:,} almost empty parts; compress it again")
        self._packed, self._unpacker = packed, zlib.decompressobj(wbits=31)
        return True


def parse_header(block: bytes) -> Any:
    """The header in a file's first 540 bytes, uncompressed. Raises ValueError if it cannot be read."""
    if block[344:348] in (b"ni1\0",) or block[4:8] in (b"ni2\0",):
        raise ValueError("is the header of a .hdr/.img pair; save it as one .nii file")
    if block[344:348] == b"n+1\0":
        return Nifti1Header(block[:348], check=False)
    if block[4:8] == b"n+2\0" and len(block) == 540:
        return Nifti2Header(block, check=False)
    raise ValueError("is compressed, but not a NIfTI file")


def volume_shape(header: Any) -> tuple[int, int, int]:
    """Three axes of plausible length, with planes and volume small enough to read."""
    shape = [int(n) for n in header.get_data_shape()]
    if not 2 <= len(shape) <= 7 or any(n != 1 for n in shape[3:]) or not all(1 <= n <= _LONGEST_AXIS for n in shape):
        raise ValueError(f"holds an array of shape {tuple(shape)}; an image is a slice of two or three dimensions")
    rows, columns, slices = (*shape, 1)[:3]
    for plane in ((rows, columns), (rows, slices), (columns, slices)):
        check_size(*plane)
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif":
        raise ValueError(f"holds {dtype}, not whole or floating-point numbers")
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise ValueError(
            f"has a damaged header: {int(header['bitpix'])} bits a pixel, where {dtype} has {dtype.itemsize * 8}"
        )
    if (
        rows * columns * slices * dtype.itemsize > MOST_VOLUME_BYTES
        or not 0 <= header.get_data_offset() <= _LONGEST_HEADER
    ):
        raise ValueError(f"its header says shape {tuple(shape)} from byte {header.get_data_offset()}: too large")
    return rows, columns, slices


def volume_affine(header: Any) -> npt.NDArray[np.float64]:
    """The (4, 4) affine that slices are taken by; if the file has none, only the voxel distances. Raises ValueError."""
    affine = np.asarray(header.get_best_affine(), np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError("has an affine that is not finite or cannot be inverted")
    if not (header["qform_code"] or header["sform_code"]):
        return np.diag(np.abs(np.diag(affine)))
    return affine


def slice_view(shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> SliceView:
    """How ``read_nifti`` takes and orients the slices of such a volume."""
    linear = affine[:3, :3]
    if _is_plain(affine):
        return SliceView(axis=2, down=0, across=1, flip_down=False, flip_across=False)
    spacing = np.sqrt((linear**2).sum(0))
    single = [axis for axis in range(3) if shape[axis] == 1]
    axis = single[-1] if single else int(2 - np.argmax(spacing[::-1]))
    orientation = io_orientation(affine)
    # World axes are right, anterior, superior: of the two in the slice the later one runs down, both from high to low.
    across, down = sorted((a for a in range(3) if a != axis), key=lambda a: float(orientation[a, 0]))
    return SliceView(axis, down, across, bool(orientation[down, 1] > 0), bool(orientation[across, 1] > 0))


def _is_plain(affine: npt.NDArray[np.float64]) -> bool:
    """Whether an affine contains only voxel distances, as written by software without patient coordinates."""
    linear = affine[:3, :3]
    scaling = (linear == np.diag(np.diag(linear))).all() and (np.diag(linear) > 0).all()
    return bool(scaling and not affine[:2, 3].any())


def _place(
    shape: tuple[int, int, int], affine: npt.NDArray[np.float64], view: SliceView, index: int
) -> npt.NDArray[np.float64]:
    """``Pixels.place`` of a slice in its displayed orientation."""
    if _is_plain(affine):
        return np.zeros((3, 3))
    steps = {view.down: -1 if view.flip_down else 1, view.across: -1 if view.flip_across else 1}
    first = [index if axis not in steps else shape[axis] - 1 if steps[axis] < 0 else 0 for axis in range(3)]
    position = affine[:3, :3] @ first + affine[:3, 3]
    return np.array([position, *(affine[:3, axis] * sign for axis, sign in steps.items())])


def _read_slice(stream: IO[bytes], header: Any, shape: tuple[int, int, int], axis: int, index: int) -> npt.NDArray[Any]:
    """Slice ``index`` along ``axis``, its two axes in the array's order.

    The whole file is read, so that truncation or a wrong checksum is detected.
    """
    dtype = header.get_data_dtype()
    stream.read(int(header.get_data_offset()))
    plane_bytes = math.prod(shape[:2]) * dtype.itemsize
    kept = []
    for number in range(shape[2]):
        data = stream.read(plane_bytes)
        if len(data) != plane_bytes:
            raise ValueError(f"is truncated (slice {number} of {shape[2]} ends early)")
        if axis != 2 or number == index:
            plane = np.frombuffer(data, dtype).reshape(shape[:2], order="F")
            kept.append(plane if axis == 2 else plane.take(index, axis).copy())
    # Detects a wrong size in the header; less than a row, or zeros, are padding.
    rest = stream.read(1 << 20)
    if len(rest) == 1 << 20 or (len(rest) >= shape[0] * dtype.itemsize and any(rest)):
        raise ValueError("is longer than its header says")
    return kept[0] if axis == 2 else np.stack(kept, axis=1)


def _spacing(header: Any, affine: npt.NDArray[np.float64], view: SliceView) -> tuple[float, float] | None:
    """Distances in mm down and across; None if the unit is not given and all distances are 1."""
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    unit = {"mm": 1.0, "meter": 1e3, "micron": 1e-3}.get(header.get_xyzt_units()[0])
    if unit is None and np.allclose(spacing, 1):
        return None
    return float(spacing[view.down]) * (unit or 1.0), float(spacing[view.across]) * (unit or 1.0)
