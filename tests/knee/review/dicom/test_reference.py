"""Names of patients, studies and dates: the same for all objects of a patient."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pydicom
import pytest

from knee.review.dicom.identity import patient_name
from knee.review.writer import NotMade

from .conftest import _source_values


def test_two_patients_of_many_cases_are_two_patients_and_studies_even_under_one_study(write_series, case_of, export):
    mixed = write_series("CR", 2)  # one study, of two patients by the manifest
    cases = [case_of(path, "R", case=f"c{n}", patient=f"P{n}") for n, path in enumerate(mixed)]
    cases += [case_of(path, "R", case=f"d{n}", patient="P0") for n, path in enumerate(write_series("CR", 3))]
    made = [pydicom.dcmread(path) for path in export.write(*cases).files]
    assert {one.PatientID for one in made} == {patient_name(b"salt", f"P{n}") for n in (0, 1)}
    assert len({one.StudyInstanceUID for one in made}) == 3
    assert len({(one.StudyInstanceUID, one.PatientID) for one in made}) == 3


def test_study_dates_are_empty_or_shifted_alike_for_a_patient(write_source, case_of, export):
    path = write_source("CR", _source_values("CR"))
    later = write_source("CR", _source_values("CR"), StudyDate="20200109")
    cases = [case_of(one, "R", case=f"c{n}") for n, one in enumerate((path, later))]
    assert {pydicom.dcmread(file).StudyDate for file in export.write(*cases).files} == {""}
    shifted = replace(export, shift_dates=True, force=True).write(*cases)
    dates = [{pydicom.dcmread(file).StudyDate for file in shifted.files if f"c{n}_" in file.name} for n in (0, 1)]
    (first,), (second,) = dates
    assert first < "20200102" and date.fromisoformat(second) - date.fromisoformat(first) == timedelta(7)


def test_a_frame_of_a_multi_frame_file_has_no_objects_and_says_so(write_series, case_of, export):
    (path,) = write_series("MR", 1)
    image = pydicom.dcmread(path)
    image.PixelData, image.NumberOfFrames = image.PixelData * 2, 2
    image.save_as(path)
    case = case_of(f"{path}#1", "L")
    with pytest.raises(
        NotMade, match="is a frame of a multi-frame file, of which no objects are made; export as png or nifti"
    ):
        export.write(case)
