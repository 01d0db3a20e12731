from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from knee.images.original import read_original
from knee.images.read import read_pixels
from knee.review.nifti import NiftiWriter, dicom_affine
from knee.review.writer import Exported


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_a_map_is_on_its_slice_of_the_volume(tmp_path, case_of, axis, signs):
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

    writer = NiftiWriter(tmp_path / "out")
    assert writer.add(case, replace(read_original(case.source), geometry=Same())).files == ()
    written = nibabel.load(writer.finish().files[0])
    assert written.shape == volume.shape and written.header.get_xyzt_units()[0] == "mm"
    x = written.get_fdata().take([2], slices_along) * np.ptp(shown) + shown.min()
    assert x == pytest.approx(volume.take([2], slices_along), abs=1e-5)
    others = [number for number in range(volume.shape[slices_along]) if number != 2]
    assert not written.get_fdata().take(others, slices_along).any(), "slices that are not exported are 0"
    assert written.get_sform() == pytest.approx(affine) and written.get_qform() == pytest.approx(affine, abs=1e-5)
    assert int(written.header["sform_code"]) > 0 and int(written.header["qform_code"]) > 0


def test_an_mr_slice_is_where_the_scanner_put_it(tmp_path, case_of, write_source):
    source = write_source("MR", np.arange(200 * 160, dtype=np.uint16).reshape(200, 160))
    case = case_of(source, "L")
    written = nibabel.load(_written(tmp_path / "out", case).files[1])
    assert written.shape == (200, 160, 1)
    # Row 0, column 0 is at (-40, -60, 60) in DICOM's axes, which run left and posterior; NIfTI's run right and anterior.
    assert written.affine @ [0, 0, 0, 1] == pytest.approx([40, 60, 60, 1])
    assert written.affine @ [10, 0, 0, 1] == pytest.approx([40, 60, 56, 1])
    assert written.affine @ [0, 10, 0, 1] == pytest.approx([40, 56, 60, 1])
    x = written.get_fdata().squeeze()
    place = np.unravel_index(x.argmax(), x.shape)
    assert place == pytest.approx((4.5 / 16 * 200, 200 - 11.5 / 16 * 200 - 20), abs=1.5)


def _written(folder, *cases):
    writer = NiftiWriter(folder)
    done = [writer.add(case, read_original(case.source)) for case in cases] + [writer.finish()]
    return Exported(*(tuple(item for one in done for item in getattr(one, name)) for name in ("files", "left_out")))


def _series(write_source, positions):
    values = np.arange(200 * 160, dtype=np.uint16).reshape(200, 160)
    shared = {"SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    places = [{"ImagePositionPatient": [place, -60, 60], **shared} for place in positions]
    return [write_source("MR", values, **place) for place in places]


def test_a_dicom_series_is_one_volume_in_order_along_its_normal(tmp_path, case_of, write_source):
    sources = _series(write_source, [40, 37, 34, 31])
    cases = [replace(case_of(source, "L"), case=f"c{n}") for n, source in enumerate(sources)]
    exported = _written(tmp_path / "out", *cases[1:])
    assert [path.name for path in exported.files] == ["c1_teacher.nii.gz", "c1_student.nii.gz"]
    written = nibabel.load(exported.files[0])
    assert written.shape == (200, 160, 4) and exported.left_out == ()
    x = written.get_fdata()
    assert [bool(x[:, :, number].any()) for number in range(4)] == [False, True, True, True]
    # The normal of these slices runs to the right: from 40 mm left to 31 mm, in NIfTI's axes from −40 to −31.
    assert [written.affine @ [0, 0, number, 1] for number in (0, 3)] == [
        pytest.approx([-40, 60, 60, 1]),
        pytest.approx([-31, 60, 60, 1]),
    ]
    for transform in (written.get_sform(), written.get_qform()):
        assert transform == pytest.approx(written.affine, abs=1e-5)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_a_series_with_a_gap_is_a_volume_for_each_slice_and_a_sentence(tmp_path, case_of, write_source):
    cases = [
        replace(case_of(source, "L"), case=f"c{n}") for n, source in enumerate(_series(write_source, [40, 37, 28]))
    ]
    exported = _written(tmp_path / "out", *cases)
    assert len(exported.files) == 6 and "not evenly spaced" in exported.left_out[0]
    assert {nibabel.load(path).shape for path in exported.files} == {(200, 160, 1)}


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


def test_the_frames_of_an_enhanced_file_are_one_volume(tmp_path, case_of, write_source):
    values = np.arange(200 * 160, dtype=np.uint16).reshape(200, 160)
    single = write_source("MR", values)
    image = pydicom.dcmread(single)
    single.unlink()  # it would be a slice of the same series
    image.PixelData, image.NumberOfFrames = image.PixelData * 3, 3
    image.PerFrameFunctionalGroupsSequence = []
    for number in range(3):
        own = pydicom.Dataset()
        own.PlanePositionSequence = [pydicom.Dataset()]
        own.PlanePositionSequence[0].ImagePositionPatient = [40 - 3 * number, -60, 60]
        image.PerFrameFunctionalGroupsSequence.append(own)
    image.save_as(tmp_path / "enhanced.dcm")
    cases = [replace(case_of(f"{tmp_path / 'enhanced.dcm'}#{number}", "L"), case=f"c{number}") for number in range(3)]
    exported = _written(tmp_path / "out", *cases)
    written = nibabel.load(exported.files[0])
    assert len(exported.files) == 2 and written.shape == (200, 160, 3) and written.get_fdata().any(axis=(0, 1)).all()
    assert written.affine @ [0, 0, 2, 1] == pytest.approx([-34, 60, 60, 1])
