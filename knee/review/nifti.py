"""Attention maps as NIfTI, on the original pixels and in their position in space."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from knee.images.dicom import looks_like_dicom
from knee.images.nifti import is_nifti, parse_header, slice_view, volume_affine, volume_shape
from knee.images.original import Original
from knee.images.slices import split_slice
from knee.io.files import whole_file
from knee.review.cases import ReviewCase
from knee.review.dicom.stacks import GEOMETRY, Slice, Stack, Stacks, header
from knee.review.writer import NETWORKS, Exported, NotMade, Writer, making

Affine = NDArray[np.float64]
_UNEVEN = 0.02
"""The largest difference of the steps between slices, as a share of a step."""


@dataclass
class NiftiWriter(Writer):
    """x of each network as float32: one volume for each series, 0 where a slice is not a case of the export.

    ``CASE_NETWORK.nii.gz`` has the name of the series' first case. The affine is that of the source volume, or that of the
    DICOM series in its folder. Maps of other images have no position: they are plain arrays, rows first, with the pixel
    spacing.
    """

    folder: Path
    networks: tuple[str, ...] = NETWORKS
    force: bool = False
    ending = ".nii.gz"
    _stacks: Stacks = field(init=False, default_factory=Stacks)
    _volumes: dict[Path, dict[int, Slice]] = field(init=False, default_factory=dict)

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write both maps of a case that is not a slice; slices are written when all are known."""
        if original.problem:
            return Exported()
        assert original.path is not None
        one = Slice.of(case, original)
        with making("nifti"):
            file, index = split_slice(original.path)
            if is_nifti(_head(file)):
                self._volumes.setdefault(file, {})[index or 0] = one
                return Exported()
            source = header(original.path) if looks_like_dicom(_head(file)) else None
            if source is not None and source.get("SeriesInstanceUID") and all(source.get(name) for name in GEOMETRY):
                self._stacks.add(source, one)
                return Exported()
            images = {network: _plain(one.attention(network), original) for network in self.networks}
        return self._write(case.case, images)

    def finish(self) -> Exported:
        """Write the volumes."""
        made = [
            self._made(min(slices.items())[1], partial(_in_volume, file, slices))
            for file, slices in self._volumes.items()
        ]
        for stack in self._stacks:
            ordered = stack.ordered()
            try:
                with making("nifti"):
                    planes = _planes(stack, self._stacks)
            except NotMade as error:
                made.append(Exported((), (f"case {ordered[0].facts.case}: {error}",)))
                continue
            if planes is not None:
                made.append(self._made(ordered[0], partial(_in_space, planes)))
                continue
            note = "the slices of its series are not evenly spaced: a volume for each of them"
            made.append(Exported((), (f"case {ordered[0].facts.case}: {note}",)))
            made += [self._made(one, partial(_in_space, [(header(one.path), one)])) for one in ordered]
        self._stacks, self._volumes = Stacks(), {}
        return Exported(*(tuple(item for one in made for item in getattr(one, name)) for name in ("files", "left_out")))

    def _made(self, first: Slice, make: Callable[[str], nibabel.Nifti1Image]) -> Exported:
        case = first.facts.case
        try:
            with making("nifti"):
                images = {network: make(network) for network in self.networks}
        except NotMade as error:
            return Exported((), (f"case {case}: {error}",))
        return self._write(case, images)

    def _write(self, case: str, images: Mapping[str, nibabel.Nifti1Image]) -> Exported:
        files = {self.folder / f"{case}_{network}.nii.gz": image for network, image in images.items()}
        for path, image in files.items():
            with whole_file(path, force=self.force) as scratch:
                scratch.write_bytes(_packed(image))
        return Exported(tuple(files))


def _packed(image: nibabel.Nifti1Image) -> bytes:
    image.header["descrip"] = b"attention; research use only"
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with gzip.open(file) if packed else file.open("rb") as stream:
        return stream.read(540)


def _plain(x: NDArray[np.float32], original: Original) -> nibabel.Nifti1Image:
    """A map without a position in space."""
    down, across = original.spacing_mm or (1.0, 1.0)
    image = nibabel.Nifti1Image(x[:, :, None], np.diag([down, across, 1.0, 1.0]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    return image


def _in_volume(file: Path, slices: Mapping[int, Slice], network: str) -> nibabel.Nifti1Image:
    """The maps in the source volume's shape, orientation and position."""
    parsed = parse_header(_head(file))
    shape, affine = volume_shape(parsed), parsed.get_best_affine()
    view = slice_view(shape, volume_affine(parsed))
    volume = np.zeros(shape, np.float32)
    for index, one in slices.items():
        plane = one.attention(network)[:: -1 if view.flip_down else 1, :: -1 if view.flip_across else 1]
        np.moveaxis(volume, view.axis, 0)[index] = plane.T if view.down > view.across else plane
    codes = [int(parsed["sform_code"]), int(parsed["qform_code"])]
    return _placed(volume, affine, codes[0] or codes[1], codes[1] or codes[0])


def _planes(stack: Stack, stacks: Stacks) -> list[tuple[Dataset, Slice | None]] | None:
    """Headers and cases of all slices of a series, in order along the normal; None if they are not evenly spaced."""
    planes: dict[float, tuple[Dataset, Slice | None]] = {
        depth: (header(one.path), one) for depth, one in stack.slices.items()
    }
    planes |= {depth: (header(path), None) for depth, path in stack.missing(stacks.files)}
    depths = sorted(planes)
    steps = np.diff(depths)
    if len(steps) and np.ptp(steps) > _UNEVEN * float(np.median(steps)):
        return None
    return [planes[depth] for depth in depths]


def _in_space(planes: Sequence[tuple[Dataset, Slice | None]], network: str) -> nibabel.Nifti1Image:
    """The maps of a DICOM series, evenly spaced, where the scanner put it: [row, column, slice]."""
    first, last = planes[0][0], planes[-1][0]
    ends = np.array(last.ImagePositionPatient, float) - np.array(first.ImagePositionPatient, float)
    step = (
        float(np.linalg.norm(ends)) / (len(planes) - 1) if len(planes) > 1 else float(first.get("SliceThickness") or 1)
    )
    volume = np.zeros((int(first.Rows), int(first.Columns), len(planes)), np.float32)
    for number, (_, one) in enumerate(planes):
        if one is not None:
            volume[:, :, number] = one.attention(network)
    affine = dicom_affine(first.ImageOrientationPatient, first.ImagePositionPatient, first.PixelSpacing, step)
    return _placed(volume, affine, 1, 1)


def _placed(volume: NDArray[np.float32], affine: Affine, sform: int, qform: int) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(volume, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    return image


def dicom_affine(orientation: list[float], position: list[float], spacing: list[float], thickness_mm: float) -> Affine:
    """The affine of an array [row, column, slice], in NIfTI's axes (right, anterior, superior), of a DICOM slice.

    DICOM's axes run to the left, posterior and superior; orientation holds the direction along a row, then down a
    column; spacing is between rows, then between columns.
    """
    along_row, down_column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    affine = np.eye(4)
    affine[:3, 0] = down_column * float(spacing[0])
    affine[:3, 1] = along_row * float(spacing[1])
    affine[:3, 2] = np.cross(along_row, down_column) * thickness_mm
    affine[:3, 3] = np.array(position, float)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
