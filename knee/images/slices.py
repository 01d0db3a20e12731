"""Slices of a volume by name: ``volume.nii.gz#7``."""

from __future__ import annotations

import os
from pathlib import Path


def split_slice(path: str | Path) -> tuple[Path, int | None]:
    """The file and the slice number of ``volume.nii.gz#7``; the number is None if none is given.

    >>> split_slice("scan.nii.gz#7")[1]
    7
    """
    name = str(path)
    stem, mark, digits = name.rpartition("#")
    if not mark or not digits.isdecimal() or len(digits) > 6 or not stem or _exists(name):
        return Path(name), None
    return Path(stem), int(digits)


def is_file(path: str | Path) -> bool:
    """Whether the file exists, or the volume if ``path`` names one of its slices."""
    file = split_slice(path)[0]
    return _exists(str(file)) and file.is_file()


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 (Path.exists raises for a name that is too long)
