"""Memory-mapped .npy files that are pickled as the file's name, so that worker processes share memory pages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
FACTS = np.dtype([("digest", "S20"), ("sum", "<i8"), ("squares", "<i8")])
"""Of an image: its SHA-1 (empty if it is constant), and the sums of its values and of their squares."""
_BLOCK = 256
SHARD_BYTES = 1 << 30
"""Most bytes in one file of images."""


class SharedArray(np.memmap[Any, Any]):
    """A read-only array of a whole .npy file. Slices of it are pickled as ordinary arrays."""

    _whole: Path | None = None

    def __array_finalize__(self, source: Any) -> None:
        super().__array_finalize__(source)
        self._whole = None

    def __reduce__(self) -> tuple[Callable[..., Any], Any]:
        if self._whole is not None:
            return open_shared, (self._whole,)
        return np.asarray(self).__reduce__()  # type: ignore[return-value]


def open_shared(path: Path) -> SharedArray:
    """Memory-map a .npy file. Raises OSError or ValueError if it is missing or damaged."""
    array: SharedArray = open_memmap(path, mode="r").view(SharedArray)
    array._whole = path
    return array


def create_bytes(path: Path, shape: tuple[int, int, int], *, rows: range | list[int]) -> np.memmap[Any, Any]:
    """Create a .npy file of zeros, uint8, and map it for writing ``rows``, whose disk space is reserved here.

    Other rows take no space. Raises OSError if the disk is full. Without the reservation, writing into the mapping would
    kill the process (SIGBUS).
    """
    array: np.memmap[Any, Any] = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            for row in rows:
                os.posix_fallocate(file.fileno(), array.offset + row * array[row].size, array[row].size)
    return array


class Shards:
    """Several arrays (n, S, S) that are read and written by row as one array (N, S, S); all but the last have one length."""

    def __init__(self, parts: Sequence[np.memmap[Any, Any]]) -> None:
        self._parts = parts
        self._each = len(parts[0])
        self.shape = (sum(map(len, parts)), *parts[0].shape[1:])
        self.ndim, self.dtype = parts[0].ndim, parts[0].dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Bytes:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        if np.ndim(rows) == 0:
            part, row = self._place(int(rows))
            return np.asarray(part[row])
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, row in enumerate(rows):
            found[place] = self[row]
        return found

    def __setitem__(self, row: int, values: Bytes) -> None:
        part, within = self._place(row)
        part[within] = values

    def flush(self) -> None:
        """Write what was changed."""
        for part in self._parts:
            part.flush()

    def _place(self, row: int) -> tuple[np.memmap[Any, Any], int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number, within = divmod(row % len(self), self._each)
        return self._parts[number], within


def shard_path(path: Path, number: int) -> Path:
    """The file of a shard, from 0.

    >>> [shard_path(Path("images.npy"), number).name for number in (0, 1)]
    ['images.npy', 'images.1.npy']
    """
    return path if number == 0 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def create_shards(path: Path, shape: tuple[int, int, int], *, rows: range | list[int]) -> np.memmap[Any, Any]:
    """``create_bytes`` in as many files of at most ``SHARD_BYTES`` as are needed."""
    each, wanted = max(1, SHARD_BYTES // (shape[1] * shape[2])), np.asarray(rows, np.int64)
    parts: list[np.memmap[Any, Any]] = []
    for first in range(0, shape[0], each):
        end = min(first + each, shape[0])
        here = (wanted[(wanted >= first) & (wanted < end)] - first).tolist()
        parts.append(create_bytes(shard_path(path, len(parts)), (end - first, *shape[1:]), rows=here))
    return _as_one(parts)


def open_shards(path: Path) -> np.memmap[Any, Any]:
    """Memory-map the files of ``create_shards`` for reading. Raises OSError or ValueError as ``open_shared``."""
    parts: list[np.memmap[Any, Any]] = [open_shared(path)]
    while (further := shard_path(path, len(parts))).exists():
        parts.append(open_shared(further))
    return _as_one(parts)


def _as_one(parts: list[np.memmap[Any, Any]]) -> np.memmap[Any, Any]:
    # Shards have what readers of a cache need: rows, a shape and a type.
    return parts[0] if len(parts) == 1 else cast("np.memmap[Any, Any]", Shards(parts))


def facts_of(images: Bytes) -> NDArray[Any]:
    """(N,) what later commands need of all images (N, S, S): ``FACTS``, with one pass over the pixels."""
    found = np.zeros(len(images), FACTS)
    for start in range(0, len(images), _BLOCK):
        block = np.asarray(images[start : start + _BLOCK]).reshape(-1, images[0].size)
        here = found[start : start + _BLOCK]
        counts = block.astype(np.int64)
        here["sum"], here["squares"] = counts.sum(1), (counts**2).sum(1)
        shown = (block != block[:, :1]).any(1)
        here["digest"] = [
            hashlib.sha1(one.tobytes()).digest() if show else b"" for one, show in zip(block, shown, strict=True)
        ]
    return found


def pixels_digest(images: Bytes, masks: Bytes) -> str:
    """SHA-256 of all images and masks, shortened to 16 hex digits."""
    digest = hashlib.sha256()
    for array in (images, masks):
        for start in range(0, len(array), _BLOCK):
            digest.update(array[start : start + _BLOCK].tobytes())
    return digest.hexdigest()[:16]
