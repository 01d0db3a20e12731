"""Slices of one series that do not belong into one volume."""

from __future__ import annotations

from dataclasses import replace

import pydicom


def test_two_echoes_and_two_orientations_of_a_series_are_stacks_of_their_own(write_series, case_of, export):
    paths = write_series("MR", 4)
    for path, changes in zip(paths[2:], ({}, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}), strict=True):
        image = pydicom.dcmread(path)
        image.ImagePositionPatient = pydicom.dcmread(paths[0]).ImagePositionPatient
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        image.save_as(path)
    exported = replace(export, maps=False).write(*(case_of(path, "L", case=f"c{n}") for n, path in enumerate(paths)))
    masks = [pydicom.dcmread(path) for path in exported.files if "teacher_mask" in path.name]
    assert [mask.NumberOfFrames for mask in masks] == [2, 1, 1] and exported.left_out == ()
    assert len({mask.SOPInstanceUID for mask in masks}) == 3


def test_a_series_with_missing_slices_has_frames_where_the_others_were_scanned(write_series, case_of, export):
    paths = write_series("MR", 5)
    positions = [list(pydicom.dcmread(path).ImagePositionPatient) for path in paths]
    for missing in (1, 2):
        paths[missing].unlink()
    exported = export.write(*(case_of(paths[n], "L", case=f"c{n}") for n in (0, 3, 4)))
    assert exported.left_out == ()
    for kind in ("teacher_mask", "teacher_map"):
        (made,) = (pydicom.dcmread(path) for path in exported.files if kind in path.name)
        found = [list(f.PlanePositionSequence[0].ImagePositionPatient) for f in made.PerFrameFunctionalGroupsSequence]
        assert sorted(found) == sorted(positions[n] for n in (0, 3, 4)), kind
