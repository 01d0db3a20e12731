"""Folders that this toolkit wrote: what lies in them is no image to learn from or to grade."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from knee.io.files import moved_into_place

MARK = "MADE_BY_DCMT.txt"
"""A file of this name marks a folder whose pictures were made from other images."""

_CACHE = {"images.npy", "masks.npy", "has_mask.npy", "geometries.npy"}


def mark_as_own(folder: Path) -> None:
    """Mark a folder, which is made where it is missing. Raises OSError where the disk refuses."""
    with moved_into_place(folder / MARK) as scratch:
        scratch.write_text("The files in this folder were made by dcmt from images elsewhere.\n", encoding="utf-8")


def is_own(files: Collection[str], folders: Collection[str]) -> bool:
    """Whether a folder that holds these files and folders is marked, a cache of images, or a run.

    >>> is_own(["MADE_BY_DCMT.txt"], []), is_own(["config.yaml"], ["local"]), is_own(["images.npy"], ["cache"])
    (True, True, False)
    """
    is_run = "config.yaml" in files and ("local" in folders or "checkpoints" in folders)
    return MARK in files or set(files) >= _CACHE or is_run
