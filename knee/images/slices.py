"""Slices of a volume: by name (``volume.nii.gz#7``) and by choice (``all``, ``middle:20``, ``10-60``)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError

_CHOICE = re.compile(r"(?P<all>all)|middle:(?P<middle>[1-9][0-9]{0,4})|(?P<first>[0-9]{1,5})-(?P<last>[0-9]{1,5})")


class SliceChoice(NamedTuple):
    """Which slices of a volume are used: the middle ones, or those from ``first`` to ``last``."""

    middle: int | None = None
    first: int = 0
    last: int | None = None
    """Included; None: to the end."""

    def numbers(self, count: int) -> range:
        """The chosen ones of ``count`` slices, numbered from 0; all if there are fewer than ``middle``.

        >>> SliceChoice(middle=4).numbers(9), SliceChoice(first=10, last=60).numbers(30)
        (range(2, 6), range(10, 30))
        """
        if self.middle is not None:
            first = max(0, (count - self.middle) // 2)
            return range(first, min(count, first + self.middle))
        return range(self.first, count if self.last is None else min(count, self.last + 1))

    def __str__(self) -> str:
        if self.middle is not None:
            return f"middle:{self.middle}"
        return "all" if self.last is None else f"{self.first}-{self.last}"


def parse_slices(text: str) -> SliceChoice:
    """The choice of slices that ``text`` describes. Raises UserError if it describes none.

    >>> parse_slices("middle:20"), parse_slices("10-60").last
    (SliceChoice(middle=20, first=0, last=None), 60)
    """
    match = _CHOICE.fullmatch(text.strip())
    if not match or (match["first"] and int(match["first"]) > int(match["last"])):
        raise UserError(f"'{text}' is not a choice of slices; write all, middle:20 or, numbered from 0, 10-60")
    if match["all"]:
        return SliceChoice()
    if match["middle"]:
        return SliceChoice(middle=int(match["middle"]))
    return SliceChoice(first=int(match["first"]), last=int(match["last"]))


def split_slice(path: str | Path) -> tuple[Path, int | None]:
    """The file and the slice number of ``volume.nii.gz#7``; the number is None if none is given.

    >>> split_slice("scan.nii.gz#7")[1]
    7
    """
    file, number = split_slice_name(str(path))
    return Path(file), number


def split_slice_name(name: str) -> tuple[str, int | None]:
    """``split_slice`` of a path as text: for a million names, without as many ``Path`` objects."""
    if "#" not in name:
        return name, None
    stem, _, digits = name.rpartition("#")
    if not digits.isdecimal() or len(digits) > 6 or not stem or _exists(name):
        return name, None
    return stem, int(digits)


def is_file(path: str | Path) -> bool:
    """Whether the file exists, or the volume if ``path`` names one of its slices."""
    return os.path.isfile(split_slice_name(str(path))[0])  # noqa: PTH113 (Path.is_file raises for a name that is too long)


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 (Path.exists raises for a name that is too long)


def stacks(series: Sequence[str]) -> list[NDArray[np.int64]]:
    """The knees that some images show: the places of the images of each series, in order of their first images.

    ``series`` names the volume of each image; an image in none ('') is a knee of its own.

    >>> [places.tolist() for places in stacks(["b", "a", "b", "", ""])]
    [[0, 2], [1], [3], [4]]
    """
    found: dict[str | int, list[int]] = {}
    for place, name in enumerate(series):
        found.setdefault(name or place, []).append(place)
    return [np.array(places, np.int64) for places in found.values()]
