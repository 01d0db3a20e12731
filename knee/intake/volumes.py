"""Expand volumes into their slices: NIfTI files, and DICOM series ordered by position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from knee.errors import UserError, counted
from knee.images.dicom import frame_count
from knee.images.nifti import slice_count
from knee.images.slices import SliceChoice
from knee.intake.headers import Header, Plane
from knee.io.pool import map_in_order

_TILT = 0.1
"""Slices whose direction cosines differ by more are not parallel, as in a localizer with three views."""
_SAME_PLACE = 1e-3
"""In mm."""


class Slice(NamedTuple):
    """An image to grade, possibly a slice of a volume."""

    file: str
    """The image file or volume."""
    image: str
    """The name of the image: for a slice of a NIfTI file, ``file#7``."""
    series: str
    """The same for all slices of a volume; '' for an image that is not a slice."""


class _Stack(NamedTuple):
    orientation: tuple[float, ...]
    files: list[str]


def expand(
    folder: Path, files: Sequence[str], headers: Mapping[str, Header | None], choice: SliceChoice | None
) -> list[Slice]:
    """The images ``files`` of a folder, volumes replaced by their chosen slices, in order.

    A NIfTI volume or a DICOM file of several frames is expanded only if there is a ``choice``; its slices have the file's
    order. The DICOM files of one series (also of one orientation, echo time and size) are ordered by position along the
    normal of the slices, else by instance number; without a ``choice`` all are used.

    Raises:
        UserError: a choice that applies to nothing, that contains no slice of a volume, or that would be taken from a series
            with several images at a position.
    """
    counts = volumes(folder, files, headers) if choice else {}
    stacks = _stacks(files, headers)
    if choice and not (counts or stacks):
        raise UserError(f"{folder}: contains no volume or DICOM series to choose slices of; leave out --slices")
    found: list[Slice] = []
    ordered = {min(stack.files): (name, _ordered(stack, headers, choice)) for name, stack in stacks.items()}
    sliced = {file for stack in stacks.values() for file in stack.files}
    for file in files:
        if choice and file in counts:
            found += [Slice(file, f"{file}#{number}", file) for number in _numbers(choice, counts[file], file)]
        elif file in ordered:
            name, inside = ordered[file]
            chosen = _numbers(choice or SliceChoice(), len(inside), name)
            found += [Slice(inside[number], inside[number], name) for number in chosen]
        elif file not in sliced:
            found.append(Slice(file, file, ""))
    return found


def volumes(folder: Path, files: Sequence[str], headers: Mapping[str, Header | None]) -> dict[str, int]:
    """The number of slices of each NIfTI and DICOM file among ``files`` that has several."""
    names = [name for name in files if name.lower().endswith((".nii", ".nii.gz"))]
    counts = map_in_order(slice_count, [folder / name for name in names], description="reading volumes")
    found = dict(zip(names, counts, strict=True))
    found |= {name: header.frames for name in files if (header := headers.get(name))}
    return {name: found[name] for name in files if found.get(name, 1) > 1}


def refuse_volumes(folder: Path, files: Sequence[str], headers: Mapping[str, Header | None]) -> None:
    """Raise UserError if there are volumes among ``files``: the user must choose slices."""
    if found := volumes(folder, files, headers):
        file, count = next(iter(found.items()))
        raise UserError(
            f"{folder}: {counted(len(found), 'volume')} ('{file}' first, with {count} slices); choose the slices with --slices "
            "middle:20 (or all, or a range such as 10-60, numbered from 0)"
        )


def slice_mask(folder: Path, mask: str, one: Slice) -> str:
    """The mask of a slice, from the mask of its file. Raises UserError if the mask has another number of slices."""
    if not mask or one.image == one.file:
        return mask
    count, expected = slice_count(folder / mask), max(slice_count(folder / one.file), frame_count(folder / one.file))
    if count != expected:
        raise UserError(f"{mask}: has {count} slices, its volume '{one.file}' {expected}; draw the mask on the volume")
    return f"{mask}{one.image.removeprefix(one.file)}"


def _numbers(choice: SliceChoice, count: int, name: str) -> range:
    numbers = choice.numbers(count)
    if not numbers:
        raise UserError(f"{name}: has slices 0 to {count - 1}, none of them in --slices {choice}; write another range")
    return numbers


def _stacks(files: Sequence[str], headers: Mapping[str, Header | None]) -> dict[str, _Stack]:
    """Files that are parallel slices of one series, two or more, by the name of the series."""
    by_series: dict[tuple[str, ...], list[_Stack]] = defaultdict(list)
    for file in files:
        plane = _plane(headers, file)
        if plane is None:
            continue
        stacks = by_series[plane.series]
        for stack in stacks:
            if _parallel(stack.orientation, plane.orientation):
                stack.files.append(file)
                break
        else:
            stacks.append(_Stack(plane.orientation, [file]))
    return {
        _name(key, number, stack.files): stack
        for key, stacks in by_series.items()
        for number, stack in enumerate(stacks)
        if len(stack.files) > 1
    }


def _plane(headers: Mapping[str, Header | None], file: str) -> Plane | None:
    header = headers.get(file)
    return header.plane if header else None


def _parallel(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=_TILT))


def _name(key: tuple[str, ...], number: int, files: Sequence[str]) -> str:
    """The folder of a series' first file, and a digest of the series' identifier."""
    digest = blake2b("\n".join([*key, str(number)]).encode(), digest_size=6).hexdigest()
    return f"{min(files).rpartition('/')[0]}/series-{digest}".lstrip("/")


def _ordered(stack: _Stack, headers: Mapping[str, Header | None], choice: SliceChoice | None) -> list[str]:
    """A stack's files by position along the normal; without positions by instance number, then by name."""
    planes = {file: plane for file in stack.files if (plane := _plane(headers, file))}
    if not stack.orientation:
        return sorted(planes, key=lambda file: (planes[file].number or 0, file))
    normal = np.cross(stack.orientation[:3], stack.orientation[3:])
    depth = {file: float(np.dot(plane.position, normal)) for file, plane in planes.items()}
    files = sorted(planes, key=lambda file: (depth[file], planes[file].number or 0, file))
    twice = next((pair for pair in pairwise(files) if _together(depth, *pair)), None)
    if twice and choice not in (None, SliceChoice()):
        raise UserError(
            f"{twice[0]} and {twice[1]}: two images of one series at one position, so --slices {choice} cannot choose among "
            "them; give a folder with one image of each position, or --slices all"
        )
    return files


def _together(depth: Mapping[str, float], one: str, other: str) -> bool:
    return abs(depth[one] - depth[other]) < _SAME_PLACE
