"""Slices of one series, collected case by case and ordered along their normal, for objects of a whole series."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from knee.images.dicom_pixels import single_frame
from knee.images.original import Original
from knee.images.slices import split_slice
from knee.review.cases import CaseFacts, NetworkView, ReviewCase
from knee.review.writer import NETWORKS

_SAME_PLACE = 1e-3
"""In mm."""
_TILT = 1e-3
GEOMETRY = ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")


@dataclass(frozen=True)
class Slice:
    """What is kept of a case until its series is complete: the maps on the network's grid, not the pixels."""

    facts: CaseFacts
    original: Original
    """Without its pixels."""
    size: int
    """S, the side of the networks' input."""
    views: Mapping[str, NetworkView]

    @classmethod
    def of(cls, case: ReviewCase, original: Original) -> Slice:
        """What is kept of a case."""
        facts = CaseFacts(case.case, case.split, side=case.side, source=case.source, patient=case.patient)
        bare = replace(original, pixels=np.zeros((0, 0), np.uint8))
        return cls(facts, bare, case.image.shape[0], {network: getattr(case, network) for network in NETWORKS})

    @property
    def path(self) -> Path:
        """The file of the slice."""
        assert self.original.path is not None
        return self.original.path

    def attention(self, network: str) -> NDArray[np.float32]:
        """x of the network on the slice's own pixels (H, W), in [0, 1]."""
        return self.original.place(self.views[network].attention(self.size))


@dataclass
class Stack:
    """Parallel slices of one series with the same size and spacing, each at its own place."""

    series: str
    """SeriesInstanceUID of the source."""
    frame: str
    """FrameOfReferenceUID of the source."""
    size: tuple[int, int]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    slices: dict[float, Slice] = field(default_factory=dict)
    """By position along the normal, in mm."""

    def ordered(self) -> list[Slice]:
        """The slices in ascending order along the normal."""
        return [self.slices[depth] for depth in sorted(self.slices)]

    def depth(self, image: Dataset) -> float | None:
        """The position of an image along the normal, in mm; None if it is of another geometry or series."""
        if not all(image.get(keyword) for keyword in GEOMETRY) or int(image.get("NumberOfFrames") or 1) > 1:
            return None
        if (str(image.get("SeriesInstanceUID")), str(image.get("FrameOfReferenceUID"))) != (self.series, self.frame):
            return None
        orientation = _numbers(image, "ImageOrientationPatient")
        if (int(image.Rows), int(image.Columns)) != self.size or not _close(orientation, self.orientation):
            return None
        if not _close(_numbers(image, "PixelSpacing"), self.spacing):
            return None
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return float(np.dot(_numbers(image, "ImagePositionPatient"), normal))

    def missing(self, files: Callable[[Path], dict[str, list[Path]]]) -> Iterator[tuple[float, Path]]:
        """The other slices of the series in the same folders, with their positions; ``files`` as ``Stacks.files``."""
        taken = list(self.slices)
        for folder in sorted({split_slice(one.path)[0].parent for one in self.slices.values()}):
            for path in files(folder).get(self.series, ()):
                depth = self.depth(header(path))
                if depth is not None and all(abs(depth - other) >= _SAME_PLACE for other in taken):
                    taken.append(depth)
                    yield depth, path


class Stacks:
    """All stacks of an export. Memory grows by about two maps on the grid of the network for each slice."""

    def __init__(self) -> None:
        self._found: dict[str, list[Stack]] = {}
        self._files: dict[Path, dict[str, list[Path]]] = {}

    def __iter__(self) -> Iterator[Stack]:
        return (stack for stacks in self._found.values() for stack in stacks)

    def add(self, image: Dataset, one: Slice) -> None:
        """Add a slice whose header is ``image``, which has the attributes ``GEOMETRY``.

        A second image at a position, as of another echo, starts a stack of its own.
        """
        stacks = self._found.setdefault(str(image.SeriesInstanceUID), [])
        for stack in stacks:
            depth = stack.depth(image)
            if depth is not None and all(abs(depth - other) >= _SAME_PLACE for other in stack.slices):
                stack.slices[depth] = one
                return
        stack = Stack(
            str(image.SeriesInstanceUID),
            str(image.get("FrameOfReferenceUID")),
            (int(image.Rows), int(image.Columns)),
            _numbers(image, "PixelSpacing"),
            _numbers(image, "ImageOrientationPatient"),
        )
        stacks.append(stack)
        depth = stack.depth(image)
        assert depth is not None
        stack.slices[depth] = one

    def files(self, folder: Path) -> dict[str, list[Path]]:
        """The DICOM files of a folder by SeriesInstanceUID, read once."""
        if folder not in self._files:
            self._files[folder] = _files_by_series(folder)
        return self._files[folder]


def header(path: Path) -> Dataset:
    """The header of a DICOM file, or of one of its frames, without its pixels."""
    file, frame = split_slice(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        return dataset if frame is None else single_frame(dataset, frame)


def _files_by_series(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        try:
            with path.open("rb") as file:
                if file.read(132)[128:] != b"DICM":
                    continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        # Not an image, or damaged: not a slice of the series.
        except Exception:
            continue
        found.setdefault(str(tags.get("SeriesInstanceUID")), []).append(path)
    return found


def _numbers(image: Dataset, keyword: str) -> tuple[float, ...]:
    return tuple(float(value) for value in image[keyword].value)


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=_TILT))
