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
