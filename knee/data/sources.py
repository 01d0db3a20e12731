"""The files that images and masks are prepared from: where each is listed, and what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from knee.errors import Faults, counted
from knee.images.slices import split_slice_name
from knee.io.checksums import FileDigests, remembered_digests
from knee.io.tables import shortened

_BLOCK = 64
"""Images that a process prepares before they are written (of several, by the first one)."""
HINT = "fix them, or leave out their rows with --skip-bad"


class Item(NamedTuple):
    """An image to prepare."""

    place: str
    path: str
    mask_path: str
    """Empty without a mask."""
    mirror: bool
    invert: bool


class Items(NamedTuple):
    """N items as columns: a million objects would take a gigabyte."""

    place: Callable[[int], str]
    paths: Sequence[str]
    mask_paths: Sequence[str]
    mirror: npt.NDArray[np.bool_]
    invert: npt.NDArray[np.bool_]

    @property
    def number(self) -> int:
        """N."""
        return len(self.paths)

    def item(self, row: int) -> Item:
        """One of them."""
        return Item(
            self.place(row), self.paths[row], self.mask_paths[row], bool(self.mirror[row]), bool(self.invert[row])
        )

    def blocks(self) -> Iterator[list[Item]]:
        """All of them, in order."""
        for start in range(0, self.number, _BLOCK):
            yield [self.item(row) for row in range(start, min(start + _BLOCK, self.number))]


class Sources(NamedTuple):
    """The files of images and masks, and of each image which file it is, in which slice."""

    files: list[str]
    digests: FileDigests
    places: list[tuple[int, int | None]]
    mask_places: list[tuple[int, int | None] | None]


def read_sources(items: Items, known: FileDigests) -> Sources:
    """The digest of every source file. Raises Faults if one cannot be read."""
    numbers: dict[str, int] = {}

    def place_of(path: str) -> tuple[int, int | None]:
        file, index = split_slice_name(path)
        return numbers.setdefault(file, len(numbers)), index

    places = list(map(place_of, items.paths))
    mask_places = [place_of(path) if path else None for path in items.mask_paths]
    files = list(numbers)
    digests, unread = remembered_digests(files, known)
    if unread:
        faults = [
            f"{items.place(row)}{files[found[0]]}: cannot be read ({unread[found[0]]})"
            for row, both in enumerate(zip(places, mask_places, strict=True))
            for found in both
            if found is not None and found[0] in unread
        ]
        raise Faults(shortened(faults), summary=f"{counted(len(faults), 'file')} cannot be read; {HINT}:")
    return Sources(files, digests, places, mask_places)


def cache_key(items: Items, sources: Sources, version_and_options: Sequence[Any]) -> str:
    """A name that depends on the options and on the content of every file, but not on the files' location."""
    digest = hashlib.sha256(json.dumps([*version_and_options, items.number]).encode())
    hashes = [text.decode() for text in sources.digests["digest"].tolist()]

    def one(place: tuple[int, int | None] | None) -> str:
        return "" if place is None else f', ["{hashes[place[0]]}", {"null" if place[1] is None else place[1]}]'

    flags = ("false", "true")
    columns = (items.mirror.tolist(), items.invert.tolist(), sources.places, sources.mask_places)
    for mirror, invert, place, mask_place in zip(*columns, strict=True):
        digest.update(f"[{flags[mirror]}, {flags[invert]}{one(place)}{one(mask_place)}]\n".encode())
    return digest.hexdigest()[:20]
