"""NIfTI volumes: slices, orientation, pixel spacing."""

import nibabel
import numpy as np
import pytest

from knee.errors import UserError
from knee.images.read import read_pixels

from .samples import RNG, nifti_bytes, written


def test_nifti_volume_slices(tmp_path):
    volume = RNG.integers(0, 1000, (5, 6, 7)).astype(np.int16)
    for packed in (False, True):
        path = written(tmp_path, "v.nii.gz", nifti_bytes(volume, np.diag([0.5, 0.4, 3, 1]), packed=packed))
        pixels = read_pixels(f"{path}#3")
        np.testing.assert_array_equal(pixels.values, volume[:, :, 3])
        np.testing.assert_allclose(pixels.spacing_mm, (0.5, 0.4), rtol=1e-6)
        with pytest.raises(UserError, match="has 7 slices; write one, #0 to #6"):
            read_pixels(path)
        with pytest.raises(UserError, match="has slices #0 to #6 but no #7"):
            read_pixels(f"{path}#7")


def test_nifti_sagittal_is_shown_head_up_and_anterior_left(tmp_path):
    # Array axes: to the posterior, to the head, to the left (sagittal acquisition), 4 mm between slices.
    volume = RNG.integers(0, 1000, (5, 6, 3)).astype(np.int16)
    affine = np.array([[0, 0, -4, 0], [-0.5, 0, 0, 0], [0, 0.25, 0, 0], [0, 0, 0, 1.0]])
    pixels = read_pixels(f"{written(tmp_path, 'v.nii', nifti_bytes(volume, affine))}#1")
    np.testing.assert_array_equal(pixels.values, volume[:, ::-1, 1].T)
    assert pixels.spacing_mm == (0.25, 0.5)
    # The same anatomy, stored with the slices along the first axis, shows the same picture.
    turned = np.moveaxis(volume, 2, 0)
    pixels_again = read_pixels(f"{written(tmp_path, 'w.nii', nifti_bytes(turned, affine[:, [2, 0, 1, 3]]))}#1")
    np.testing.assert_array_equal(pixels_again.values, pixels.values)


def test_nifti_of_canonical_axes_is_sliced_as_the_same_volume_in_any_other_order(tmp_path):
    # Right, anterior, superior, with 3 mm between sagittal slices: what nibabel's as_closest_canonical makes of any scan.
    volume = RNG.integers(0, 1000, (4, 5, 6)).astype(np.int16)
    affine = np.diag([3, 0.5, 0.25, 1])
    affine[:3, 3] = [-90, 12, 40]
    stored = nibabel.Nifti1Image(volume, affine)
    target = nibabel.orientations.axcodes2ornt("PSL")
    order = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(affine), target)
    scanned = stored.as_reoriented(order)
    pixels = read_pixels(f"{written(tmp_path, 'ras.nii', stored.to_bytes())}#1")
    np.testing.assert_array_equal(pixels.values, volume[1, ::-1, ::-1].T)
    assert pixels.spacing_mm == (0.25, 0.5)
    pixels_again = read_pixels(f"{written(tmp_path, 'psl.nii', scanned.to_bytes())}#2")
    np.testing.assert_array_equal(pixels_again.values, pixels.values)


def test_nifti_without_patient_orientation_is_read_in_array_order(tmp_path):
    volume = RNG.integers(0, 1000, (5, 6, 7)).astype(np.int16)
    untold = nibabel.Nifti1Image(volume, np.diag([0.5, 0.4, 3, 1]))
    cut = untold.slicer[:, :, 3:4]
    assert cut.affine[2, 3] == 9
    distances = nibabel.Nifti1Image(volume, None)
    distances.header.set_zooms((0.5, 0.4, 3))
    for name, image in (("untold.nii#3", untold), ("cut.nii#0", cut), ("distances.nii#3", distances)):
        path = written(tmp_path, name.partition("#")[0], image.to_bytes())
        pixels = read_pixels(f"{path}#{name[-1]}")
        np.testing.assert_array_equal(pixels.values, volume[:, :, 3])
        np.testing.assert_allclose(pixels.spacing_mm, (0.5, 0.4), rtol=1e-6)
