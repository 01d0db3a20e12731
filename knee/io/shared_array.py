"""Memory-mapped .npy files that are pickled as the file's name, so that worker processes share memory pages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
FACTS = np.dtype([("digest", "S20"), ("sum", "<i8"), ("squares", "<i8")])
"""Of an image: its SHA-1 (empty if it is constant), and the sums of its values and of their squares."""
_BLOCK = 256


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
