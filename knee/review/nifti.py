"""Attention maps as NIfTI, on the original pixels and in their position in space."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from knee.images.nifti import is_nifti, parse_header, slice_view, volume_affine, volume_shape
from knee.images.original import Original
from knee.images.slices import split_slice
from knee.io.files import whole_file
from knee.review.cases import ReviewCase
from knee.review.dicom.export import read_dicom
from knee.review.writer import NETWORKS, Exported, Writer, making

Affine = NDArray[np.float64]
_PLACE = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")


@dataclass
class NiftiWriter(Writer):
    """x of each network as float32, ``CASE_NETWORK.nii.gz``: one slice at the position of the source's slice.

    The affine is that of the source volume, shifted to the slice, or that of a DICOM slice whose header has its position. Maps
    of other images have no position: they are plain arrays, rows first, with the pixel spacing.
    """

    folder: Path
    force: bool = False
    ending = ".nii.gz"

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write both maps of a case."""
        if original.problem:
            return Exported()
        with making("nifti"):
            files = {
                self.folder / f"{case.case}_{network}.nii.gz": _packed(
                    _slice_image(case.attention_on(original, network), original)
                )
                for network in NETWORKS
            }
        for path, content in files.items():
            with whole_file(path, force=self.force) as scratch:
                scratch.write_bytes(content)
        return Exported(tuple(files))


def _packed(image: nibabel.Nifti1Image) -> bytes:
    image.header["descrip"] = b"attention; research use only"
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _slice_image(x: NDArray[np.float32], original: Original) -> nibabel.Nifti1Image:
    assert original.path is not None
    file, index = split_slice(original.path)
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with gzip.open(file) if packed else file.open("rb") as stream:
        head = stream.read(540)
    if is_nifti(head):
        return _in_volume(x, head, index or 0)
    dataset = read_dicom(file)
    if dataset is not None and all(dataset.get(keyword) for keyword in _PLACE):
        affine = dicom_affine(
            dataset.ImageOrientationPatient,
            dataset.ImagePositionPatient,
            dataset.PixelSpacing,
            float(dataset.get("SliceThickness") or 1),
        )
        return nibabel.Nifti1Image(x[:, :, None], affine)
    down, across = original.spacing_mm or (1.0, 1.0)
    image = nibabel.Nifti1Image(x[:, :, None], np.diag([down, across, 1.0, 1.0]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    return image


def _in_volume(x: NDArray[np.float32], head: bytes, index: int) -> nibabel.Nifti1Image:
    """The map as a slice of the source volume, in the volume's orientation and position."""
    header = parse_header(head)
    view = slice_view(volume_shape(header), volume_affine(header))
    plane = x[:: -1 if view.flip_down else 1, :: -1 if view.flip_across else 1]
    plane = plane.T if view.down > view.across else plane
    shift = np.eye(4)
    shift[view.axis, 3] = index
    image = nibabel.Nifti1Image(np.expand_dims(plane, view.axis), header.get_best_affine() @ shift)
    image.header.set_xyzt_units(header.get_xyzt_units()[0])
    for name in ("sform", "qform"):
        getattr(image, f"set_{name}")(image.affine, int(header[f"{name}_code"]))
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
