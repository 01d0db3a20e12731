"""Checksums of files: of the content to recognize them, of blocks to detect damage."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20
_SETTLED_SECONDS = 2.0
"""Two writes within one tick of the file system's clock have the same date; a file this old has no second write."""


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


def remembered_digest(path: str, known: Mapping[str, Any]) -> list[Any]:
    """The state of a file and its content digest: the entry that a later call looks up as ``known[path]``.

    A file is not read again while its size, dates and inode match its entry. These dates include the last change of the
    inode, which programs cannot set, unlike the modification date. Raises OSError.
    """
    status = Path(path).stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    entry = known.get(path)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == state and isinstance(entry[1], str):
        return entry
    settled = time.time_ns() - max(state[1], state[2]) > _SETTLED_SECONDS * 1e9
    return [state if settled else None, content_digest(Path(path))]
