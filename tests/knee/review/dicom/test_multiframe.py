"""Segmentations and parametric maps: a frame for each slice, where it was scanned, in order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from highdicom.color import CIELabColor

from knee.evaluation.colors import TEACHER
from knee.images.original import read_original


def test_a_segmentation_and_a_map_have_a_frame_for_each_slice_where_it_was_scanned(
    write_series, case_of, export, make_case
):
    paths = write_series("MR", 4)
    flat = replace(make_case(1).teacher, class_map=np.ones((16, 16), np.float32))
    cases = [case_of(path, "L", case=f"c{n}") for n, path in enumerate(paths)]
    cases[1] = case_of(paths[1], "L", case="c1", teacher=flat)
    exported = export.write(*reversed(cases[:3]))
    (file,) = (path for path in exported.files if "teacher_mask" in path.name)
    mask = pydicom.dcmread(file)
    assert mask.NumberOfFrames == 2, "the empty slice and the one that was not exported have no frame"
    color = CIELabColor.from_dicom_value(mask.SegmentSequence[0].RecommendedDisplayCIELabValue).to_rgb()
    assert color == pytest.approx(TEACHER, abs=1), "viewers draw it in the color of the page"
    sources = [pydicom.dcmread(export.folder / f"c{n}_source.dcm") for n in (0, 2)]
    frames = {_source_of(frame): frame for frame in mask.PerFrameFunctionalGroupsSequence}
    assert set(frames) == {source.SOPInstanceUID for source in sources}
    assert [_source_of(frame) for frame in mask.PerFrameFunctionalGroupsSequence] == [
        source.SOPInstanceUID for source in sorted(sources, key=_depth)
    ]
    for source in sources:
        position = frames[source.SOPInstanceUID].PlanePositionSequence[0].ImagePositionPatient
        assert list(position) == list(source.ImagePositionPatient)
    expected = [case_of(paths[n], "L").attention_on(read_original(cases[n].source), "teacher") > 0.4 for n in (0, 2)]
    assert np.array_equal(mask.pixel_array, np.array(expected)) and expected[0].any()
    (file,) = (path for path in exported.files if "teacher_map" in path.name)
    full = pydicom.dcmread(file)
    depths = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in full.PerFrameFunctionalGroupsSequence]
    along = [float(np.dot(position, np.cross([0, 1, 0], [0, 0, -1]))) for position in depths]
    assert full.NumberOfFrames == 4 and along == sorted(along)
    empty = [not frame.any() for frame in full.pixel_array]
    order = sorted(range(4), key=lambda n: _depth(pydicom.dcmread(paths[n])))
    assert empty == [n in (1, 3) for n in order]


def _depth(image):
    cosines = np.array(image.ImageOrientationPatient, float)
    return float(np.dot(np.array(image.ImagePositionPatient, float), np.cross(cosines[:3], cosines[3:])))


def _source_of(frame):
    return frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
