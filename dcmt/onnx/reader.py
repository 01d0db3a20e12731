"""Read image files and prepare them like a run's training data; without torch, as for an exported network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError
from knee.images.geometry import Geometry
from knee.images.joints import find_knees
from knee.images.original import Original, Source, original_of
from knee.images.read import Pixels, looks_inverted, prepare, read_image
from knee.images.slices import split_slice
from knee.intake.naming import side_in_path
from knee.io.files import typed
from knee.io.pool import ahead, map_in_order

_RADIOGRAPHS = ("CR", "DX", "DR", "RF", "RG", "XA")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")


class Preparation(NamedTuple):
    """How images become the network's input."""

    image_size: int
    percentiles: tuple[float, float]
    mirror_side: str
    """The side whose images are flipped horizontally: L, R or none."""
    template: NDArray[np.float32] | None
    """The mean knee, by which negatives are detected; None if they are not."""


def two_knees_reason(path: Path) -> str:
    """Why an image of two knees gets no grade, and what to do."""
    folder = typed(path.parent)
    return (
        f"shows two knees, and a grade is of one; cut them out with dcmt crop {folder} --out crops, and grade the crops"
    )


def unlike_reason(modality: str, distance: float, *, modalities: Sequence[str], farthest: float | None) -> str:
    """Why an image is unlike the training images, which are of ``modalities`` and at most ``farthest`` apart; '' if it is not.

    >>> unlike_reason("MR", 0.0, modalities=["CR", "DX"], farthest=1.0)
    'its modality is MR, that of the training images CR or DX'
    """
    known = {_kind(name) for name in modalities}
    if modality and known and _kind(modality) not in known:
        return f"its modality is {modality}, that of the training images {' or '.join(modalities)}"
    return "it is unlike the training images" if farthest is not None and not distance <= farthest else ""


def _kind(modality: str) -> str:
    return "radiograph" if modality in _RADIOGRAPHS else modality


class Rejected(NamedTuple):
    """A file that cannot be graded."""

    path: str
    reason: str


class PreparedFile(NamedTuple):
    """What is known of the file of a prepared image."""

    path: Path
    side: str
    modality: str
    source: Source
    original: Original | None
    """None if it was not kept."""


@dataclass(frozen=True)
class Chunk:
    """The readable ones of some files as prepared images (n, S, S), and the others with the reasons."""

    images: NDArray[np.uint8]
    files: list[PreparedFile]
    rejected: list[Rejected]

    @property
    def sides(self) -> list[str]:
        """L, R or '' for each image."""
        return [file.side for file in self.files]

    @property
    def sources(self) -> list[Source]:
        """Where each image comes from."""
        return [file.source for file in self.files]


class PreparedImages:
    """Prepares images like training data."""

    def __init__(
        self,
        preparation: Preparation,
        *,
        grade_anyway: bool = False,
        most_px: int = 0,
        kept_px: int = 0,
        before: PreparedImages | None = None,
    ) -> None:
        """``grade_anyway``: an image of two knees is graded like any other. Originals of up to ``most_px`` pixels are given.

        Images of ``kept_px`` pixels in all are kept for another reader, which is given this one as ``before``.
        """
        self._most_px, self._room_px = most_px, kept_px
        self._kept: dict[Path, tuple[NDArray[np.uint8], PreparedFile]] = {}
        self._before = before._kept if before else {}
        self._data, self._template, self._anyway = preparation, preparation.template, grade_anyway
        self.mirrors = "" if self._data.mirror_side == "none" else self._data.mirror_side
        """The side whose images are flipped horizontally (L or R); empty if neither is."""

    def chunks(self, parts: Iterable[Sequence[Path]]) -> Iterator[Chunk]:
        """``read`` for each of the parts; the next one is read while one is used."""
        return ahead(map(self.read, parts))

    def read(self, paths: Sequence[Path]) -> Chunk:
        """Read and prepare files, in several threads."""
        size = self._data.image_size
        chunk = Chunk(np.empty((len(paths), size, size), np.uint8), [], [])
        for found in map_in_order(self._one, paths, description="", progress=False):
            if isinstance(found, Rejected):
                chunk.rejected.append(found)
            else:
                chunk.images[len(chunk.files)], file = found
                chunk.files.append(file)
        return replace(chunk, images=chunk.images[: len(chunk.files)])

    def _one(self, path: Path) -> tuple[NDArray[np.uint8], PreparedFile] | Rejected:
        """A prepared image and its file, or a name and why it cannot be graded; called in several threads."""
        if _CONTROL.search(str(path)):
            escaped = _CONTROL.sub(lambda letter: repr(letter[0])[1:-1], str(path))
            return Rejected(escaped, "the name contains a line break or another control character; rename it")
        if known := self._before.pop(path, None):
            return known
        try:
            pixels = read_image(path)
        except UserError as error:
            return Rejected(str(path), str(error).removeprefix(f"{path}: "))
        if not self._anyway and len(find_knees(pixels.values, pixels.spacing_mm)) == 2:
            return Rejected(str(path), two_knees_reason(path))
        side = pixels.laterality or side_in_path(split_slice(path)[0].as_posix())
        image, geometry, inverted = self._prepare(pixels, side)
        source = Source(path, geometry, inverted, self._data.percentiles)
        size = pixels.values.size
        original = original_of(pixels, source) if size <= max(self._most_px, self._room_px) else None
        prepared = image, PreparedFile(path, side, pixels.modality, source, original)
        if size <= self._room_px:
            self._room_px -= size
            self._kept[path] = prepared
        return prepared

    def _prepare(self, pixels: Pixels, side: str) -> tuple[NDArray[np.uint8], Geometry, bool]:
        """The square input, its position on the image, and whether the image was a negative."""
        mirror = bool(side) and side == self.mirrors
        size, percentiles = self._data.image_size, self._data.percentiles
        image, geometry = prepare(pixels.values, size, percentiles=percentiles, mirror=mirror)
        inverted = self._template is not None and looks_inverted(geometry.content(image), self._template)
        if inverted:
            image, _ = prepare(pixels.values, size, percentiles=percentiles, mirror=mirror, invert=True)
        return image, geometry, inverted
