"""Checksums of files: of the content to recognize them, of blocks to detect damage."""

from __future__ import annotations

import os
import time
import zlib
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee.io.files import moved_into_place
from knee.io.pool import map_in_order

_BLOCK = 1 << 20
_FILES = 64
"""Files in one piece of work."""
_SETTLED_SECONDS = 2.0
"""Two writes within one tick of the file system's clock have the same date; a file this old has no second write."""
_STATE = ("size", "modified", "changed", "inode")
_DIGESTS = np.dtype([("path", "<u8"), *((name, "<i8") for name in _STATE), ("digest", "S32")])

FileDigests = NDArray[Any]
"""Of each file 72 bytes: a hash of its path, its state (zero if it may have changed since), the digest of its content."""


def block_checksums(path: Path) -> list[int]:
    """CRC-32 of each MiB of a file. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return [zlib.crc32(block) for block in iter(lambda: file.read(_BLOCK), b"")]


def content_digest(path: Path) -> str:
    """A digest of a file's content, as 32 hex digits. Raises OSError."""
    digest = blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def saved_digests(files: Sequence[Path]) -> FileDigests:
    """The digests in ``.npy`` files, together; files that hold none are left out."""
    found = [np.zeros(0, _DIGESTS)]
    for path in files:
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if table.dtype == _DIGESTS and table.ndim == 1:
            found.append(table)
    return np.concatenate(found)


def save_digests(path: Path, digests: FileDigests) -> None:
    """Write digests for ``saved_digests``. Raises OSError."""
    with moved_into_place(path) as scratch, scratch.open("wb") as file:
        np.save(file, digests)


def remembered_digests(files: Sequence[str], known: FileDigests) -> tuple[FileDigests, dict[int, str]]:
    """State and content digest of each file, and why a file cannot be read, by its place in ``files``.

    A file is not read again while its size, dates and inode match those in ``known``. These dates include the last change of
    the inode, which programs cannot set, unlike the modification date.
    """
    found, reasons = np.zeros(len(files), _DIGESTS), {}
    found["path"] = np.frombuffer(
        b"".join(blake2b(os.fsencode(file), digest_size=8).digest() for file in files), dtype="<u8"
    )
    numbers = array("q")
    for place, file in enumerate(files):
        try:
            status = os.stat(file)  # noqa: PTH116 (a Path object for each of a million files takes longer than this)
            numbers.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino % 2**63))
        except OSError as error:
            reasons[place] = str(error.strerror)
            numbers.extend((0, 0, 0, 0))
    states = np.frombuffer(numbers, np.int64).reshape(len(files), len(_STATE))
    for column, name in enumerate(_STATE):
        found[name] = states[:, column]
    found["digest"] = digests_in(known, found)
    unknown = [place for place in np.flatnonzero(found["digest"] == b"").tolist() if place not in reasons]
    blocks = [unknown[start : start + _FILES] for start in range(0, len(unknown), _FILES)]
    read = map_in_order(
        lambda block: [_attempt(files[place]) for place in block], blocks, description="", progress=False
    )
    for place, got in zip(unknown, chain.from_iterable(read), strict=True):
        if isinstance(got, OSError):
            reasons[place] = str(got.strerror)
            continue
        found["digest"][place] = got
        if time.time_ns() - max(int(states[place, 1]), int(states[place, 2])) <= _SETTLED_SECONDS * 1e9:
            for name in _STATE:
                found[name][place] = 0
    return found, reasons


def digests_in(known: FileDigests, files: FileDigests) -> NDArray[np.bytes_]:
    """(N,) the digest of each of ``files`` that is in ``known`` in the same state; empty for others."""
    found = np.zeros(len(files), "S32")
    if np.array_equal(known["path"], files["path"]):  # the usual case: one cache, of the same files
        order, first = np.arange(len(known)), np.arange(len(files))
        last = first + 1
    else:
        order = np.argsort(known["path"], kind="stable")
        paths = known["path"][order]
        first, last = np.searchsorted(paths, files["path"]), np.searchsorted(paths, files["path"], side="right")
    # A path is there once for each cache that knows it.
    for further in range(int((last - first).max(initial=0))):
        places = np.flatnonzero(first + further < last)
        entries = known[order[first[places] + further]]
        same = np.logical_and.reduce([entries[name] == files[name][places] for name in _STATE])
        found[places[same]] = entries["digest"][same]
    return found


def _attempt(file: str) -> str | OSError:
    try:
        return content_digest(Path(file))
    except OSError as error:
        return error
