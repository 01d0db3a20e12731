"""Folders that this toolkit wrote: their files are not input images for training or grading."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path

from knee.io.files import moved_into_place

MARK = "MADE_BY_DCMT.txt"
"""A file with this name marks a folder whose images were generated from other images."""

_CACHE = {"images.npy", "masks.npy", "has_mask.npy", "geometries.npy"}


def mark_as_own(folder: Path) -> None:
    """Mark a folder, creating it if necessary. Raises OSError if the mark cannot be written."""
    with moved_into_place(folder / MARK) as scratch:
        scratch.write_text("The files in this folder were made by dcmt from images elsewhere.\n", encoding="utf-8")


def is_own(files: Collection[str], folders: Collection[str]) -> bool:
    """Whether a folder with these files and folders is marked, an image cache, or a run.

    >>> is_own(["MADE_BY_DCMT.txt"], []), is_own(["config.yaml"], ["local"]), is_own(["images.npy"], ["cache"])
    (True, True, False)
    """
    is_run = "config.yaml" in files and ("local" in folders or "checkpoints" in folders)
    return MARK in files or set(files) >= _CACHE or is_run


def unfinished_folder(parent: Path) -> Path:
    """A new folder for something that is moved into place when it is complete."""
    return Path(tempfile.mkdtemp(prefix=f".{socket.gethostname()}.{os.getpid()}.", dir=parent))


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes of this machine left in their ``unfinished_folder``."""
    for path in folder.glob(f".{socket.gethostname()}.*.*"):
        owner = path.name.removeprefix(f".{socket.gethostname()}.").split(".")[0]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue
