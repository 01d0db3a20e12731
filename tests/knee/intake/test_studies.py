"""DICOM files without a PatientID: those of one study are of one patient."""

import pytest

from knee.data.strata import make_split


def test_slices_of_one_series_without_a_patient_are_one_patient(study):
    for series in range(3):
        for number in range(6):
            study.draw_dicom(f"all/IM{series}{number:03d}", StudyInstanceUID=f"1.2.{series}", PatientID="")
    table = study.table()
    assert table["patient"].nunique() == 3
    assert table.assign(series=table["image"].str[6]).groupby("series")["patient"].nunique().eq(1).all()
    assert (
        "18 DICOM files without a PatientID: those of one study count as one patient, 3 patients in total"
        in study.notes()
    )
    split = make_split(table, seed=0).assign(patient=table["patient"])
    assert split.groupby("patient")["split"].nunique().eq(1).all()


@pytest.mark.parametrize(
    ("names", "patient"),
    [
        (["9001/IM1.dcm", "9001/IM2.dcm"], "9001"),
        (["9001_L.dcm", "9001_R.dcm"], "9001"),
        (["slice1.dcm", "slice2.dcm"], "study-"),
    ],
)
def test_the_name_of_the_patient_of_a_study(study, names, patient):
    for name in names:
        study.draw_dicom(name, StudyInstanceUID="1.2.3")
    (found,) = set(study.table()["patient"])
    assert found.startswith(patient)


def test_a_patient_id_comes_before_the_study(study):
    for patient in "AB":
        study.draw_dicom(f"{patient}.dcm", StudyInstanceUID="1.2.3", PatientID=patient)
    assert study.table()["patient"].tolist() == ["A", "B"]


def test_a_side_at_the_end_of_a_patient_id_is_the_side(study):
    study.draw_dicom("a.dcm", PatientID="9001L", ImageLaterality="L")
    study.draw_dicom("b.dcm", PatientID="9001R", ImageLaterality="R")
    study.draw_dicom("c.dcm", PatientID="9001R", ImageLaterality="L")
    assert study.table()[["patient", "side"]].values.tolist() == [["9001", "L"], ["9001", "R"], ["9001R", "L"]]
