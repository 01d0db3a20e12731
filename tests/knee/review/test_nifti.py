from __future__ import annotations

from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pytest

from knee.errors import UserError
from knee.images.original import Source, read_original
from knee.images.read import prepare, read_pixels
from knee.review.nifti import NiftiWriter, dicom_affine
from knee.review.png import PngWriter

SIZE = 128


@pytest.fixture
def case_of(make_case):
    def make(source, side="R"):
        image, geometry = prepare(read_pixels(source).values, SIZE, mirror=side == "L")
        evidence = np.zeros((16, 16), np.float32)
        evidence[4, 11] = 2.0
        view = replace(make_case(1).teacher, class_map=evidence)
        changes = {"image": image, "geometry": geometry, "source": source, "cartilage": None}
        return make_case(1, student=view, teacher=view, side=side, **changes)

    return make


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_a_map_lies_on_its_slice_of_the_volume(tmp_path, case_of, axis, signs):
    rng = np.random.default_rng(0)
    shape, spacing = [40, 36, 30], np.array([0.5, 0.5, 0.5])
    shape[axis], spacing[axis] = 7, 3.0
    volume = rng.random(shape).astype(np.float32)
    affine = np.diag([*(spacing * signs), 1.0])
    affine[:3, 3] = [10, -20, 30]
    affine = affine[:, [1, 0, 2, 3]] if axis == 0 else affine  # axes need not be in the world's order
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "knee.nii.gz")
    slices_along = int(np.argmax(np.abs(affine[:3, :3]).sum(0)))
    case = case_of(tmp_path / "knee.nii.gz#2")
    # A map that is the picture itself must be found again in the volume at the same place in the world.
    shown = read_pixels(case.source.path).values

    class Same:
        def restore(self, square):
            return (shown - shown.min()) / np.ptp(shown)

    paths = NiftiWriter(tmp_path / "out").add(case, replace(read_original(case.source), geometry=Same())).files
    written = nibabel.load(paths[0])
    x = written.get_fdata() * np.ptp(shown) + shown.min()
    expected = volume.take([2], slices_along)
    assert x == pytest.approx(expected, abs=1e-5)
    corner, index = np.zeros(4), np.zeros(4)
    corner[3] = index[3] = 1
    index[slices_along] = 2
    assert written.affine @ corner == pytest.approx(affine @ index)


def test_an_mr_slice_lies_where_the_scanner_put_it(tmp_path, case_of, write_source):
    source = write_source("MR", np.arange(200 * 160, dtype=np.uint16).reshape(200, 160))
    case = case_of(source, "L")
    written = nibabel.load(NiftiWriter(tmp_path / "out").add(case, read_original(case.source)).files[1])
    assert written.shape == (200, 160, 1)
    # Row 0, column 0 is at (-40, -60, 60) in DICOM's axes, which run left and posterior; NIfTI's run right and anterior.
    assert written.affine @ [0, 0, 0, 1] == pytest.approx([40, 60, 60, 1])
    assert written.affine @ [10, 0, 0, 1] == pytest.approx([40, 60, 56, 1])
    assert written.affine @ [0, 10, 0, 1] == pytest.approx([40, 56, 60, 1])
    x = written.get_fdata().squeeze()
    place = np.unravel_index(x.argmax(), x.shape)
    assert place == pytest.approx((4.5 / 16 * 200, 200 - 11.5 / 16 * 200 - 20), abs=1.5)


def test_a_slice_without_a_position_is_a_plain_array(tmp_path, case_of, write_source):
    values = np.arange(200 * 160, dtype=np.uint16).reshape(200, 160)
    case = case_of(write_source("MR", values, ImagePositionPatient=None))
    written = nibabel.load(NiftiWriter(tmp_path / "out").add(case, read_original(case.source)).files[0])
    assert written.shape == (200, 160, 1)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (0, 0)
    assert written.header.get_zooms()[:2] == pytest.approx((0.4, 0.4))


def test_the_slice_normal_is_that_of_a_right_handed_scanner():
    affine = dicom_affine([1, 0, 0, 0, 1, 0], [0, 0, 0], [2, 3], 4)
    assert affine @ [1, 0, 0, 1] == pytest.approx([0, -2, 0, 1])
    assert affine @ [0, 1, 0, 1] == pytest.approx([-3, 0, 0, 1])
    assert affine @ [0, 0, 1, 1] == pytest.approx([0, 0, 4, 1])


def test_pictures_have_the_originals_pixels_and_are_not_replaced(tmp_path, case_of, run):
    cv2.imwrite(str(tmp_path / "knee.png"), np.tile(np.arange(200, dtype=np.uint8), (150, 1)))
    case = case_of(tmp_path / "knee.png")
    original = read_original(case.source)
    paths = PngWriter(tmp_path / "out", run).add(case, original).files
    assert [path.name for path in paths] == ["000000000001_teacher.png", "000000000001_student.png"]
    picture = cv2.imread(str(paths[0]))
    assert picture.shape[1] == 600 and picture.shape[0] > 450
    assert np.ptp(picture[:450], axis=2).max() > 60
    plain = nibabel.load(NiftiWriter(tmp_path / "out").add(case, original).files[0])
    assert plain.shape == (150, 200, 1)
    with pytest.raises(UserError, match="exists already"):
        PngWriter(tmp_path / "out", run).add(case, original)
    cv2.imwrite(str(tmp_path / "knee.png"), np.zeros((10, 20), np.uint8))
    with pytest.raises(UserError, match="20 × 10 pixels now"):
        read_original(case.source)


def test_a_negative_is_shown_as_the_networks_saw_it(tmp_path, case_of, run):
    """What the cache turned into a positive, between the percentiles of the run's config."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    cv2.imwrite(str(tmp_path / "knee.png"), ramp)
    percentiles = (10.0, 80.0)
    image, geometry = prepare(ramp, SIZE, percentiles=percentiles, invert=True)
    original = read_original(Source(tmp_path / "knee.png", geometry, True, percentiles))
    assert original.grey[0, 0] == 255 and original.grey[0, -1] == 0
    assert (original.grey == 255).sum(1)[0] == pytest.approx(20, abs=1)
    assert (original.grey == 0).sum(1)[0] == pytest.approx(40, abs=1)
    seen = cv2.resize(original.grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(seen.astype(int) - image).max() <= 1
