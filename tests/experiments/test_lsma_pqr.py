"""The layout of LSMA-PQR on a miniature: names, grades by disc, notes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcmt.cli import main as dcmt
from experiments.lsma_pqr import main, read_table
from knee.data.manifest import read_manifest
from knee.errors import Faults, UserError
from knee.grades import load_grade_set

NOTES = 'PatientID,Severity,ClinicalNotes\n1,mild,"Bulge at L4-L5, Pfirrmann grade 4"\n42,normal,No herniation\n'


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Patients 1 and 42 with three axial and one sagittal image in two sequences."""
    folder = tmp_path / "LSMA-PQR"
    (folder / "images_png").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for patient in ("0001", "0042"):
        for sequence in ("T1", "T2"):
            for name in (
                *(f"axial_{sequence}_{patient}_D{disc}" for disc in (3, 4, 5)),
                f"sag_{sequence}_{patient}_S8",
            ):
                pixels = generator.integers(0, 256, (64, 64), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images_png" / f"{name}.png")
    (folder / "PfirrmannGrades.csv").write_text("PatientID,D3,D4,D5\n1,1,4,5\n42,2,,3\n")
    (folder / "IVDHeights.csv").write_text(
        'PatientID,D3_Ht,D4_Ht,D5_Ht,D3_Coord\n1,10.5,9.8,8.2,"1,2;3,4"\n42,11,10,9,"1,2;3,4"\n'
    )
    (folder / "RadiologicalNotes.csv").write_text(NOTES)
    return folder


def test_axial_images_have_the_grade_of_their_disc_and_the_note(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "lumbar.csv"
    assert main([str(archive), "--out", str(out)]) == 0
    grade_set = load_grade_set(out.parent / "pfirrmann.yaml")
    table = read_manifest(out, grade_set).table
    assert len(table) == 12
    row = table[table["image"].str.endswith("axial_T2_0001_D4.png")].iloc[0]
    assert (row["patient"], row["grade"], row["level"], row["sequence"]) == ("0001", 3, "D4", "T2")
    assert row["report"] == "Bulge at L4-L5, Pfirrmann grade 4"
    assert table["grade"].isna().sum() == 2  # disc D4 of patient 42, in two sequences
    assert dcmt(["check", str(out), "--grade-set", str(out.parent / "pfirrmann.yaml")]) == 0
    assert main([str(archive), "--out", str(out)]) == 2  # it exists


def test_sagittal_images_have_the_note_alone(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "sag.csv"
    assert main([str(archive), "--out", str(out), "--view", "sag", "--sequence", "T2"]) == 0
    table = read_manifest(out, load_grade_set(tmp_path / "pfirrmann.yaml")).table
    assert len(table) == 2
    assert table["grade"].isna().all()
    assert table["report"].ne("").all()


def test_the_other_spelling_of_the_description(archive: Path) -> None:
    for name in ("axial_T2_0001_D4", "sag_T1_0042_S8"):
        path = archive / "images_png" / f"{name}.png"
        path.rename(path.with_name(f"{name.partition('_')[2]}.png"))
    (archive / "PfirrmannGrades.csv").rename(archive / "PfirrmannGrade.csv")
    (archive / "RadiologicalNotes.csv").rename(archive / "structured_notes.csv")
    (archive / "structured_notes.csv").write_text(NOTES.replace("PatientID", "Patient_ID"))
    assert main([str(archive), "--out", str(archive / "m.csv")]) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("PfirrmannGrades.csv", "PatientID,L3,D4,D5\n1,1,2,3\n", "has no column D3; there are PatientID, L3, D4, D5"),
        ("PfirrmannGrades.csv", "D3,D4,D5\n1,2,3\n", "has no column PatientID"),
        ("PfirrmannGrades.csv", "PatientID,D3,D4,D5\n1,6,2,3\n", "line 2: '6' is not a grade from 1 to 5"),
        ("PfirrmannGrades.csv", "PatientID,D3,D4,D5\n1,1,2,3\n001,1,2,3\n", "line 3: patient 001 is there twice"),
        ("PfirrmannGrades.csv", "PatientID,D3,D4,D5\nP1,1,2,3\n", "patient 'P1'"),
        ("IVDHeights.csv", "PatientID,D3_Ht,D4_Ht,D5_Ht\n1,high,2,3\n", "'high' is not a height in mm"),
        ("RadiologicalNotes.csv", "PatientID,note\n1,fine\n", "has no column ClinicalNotes"),
    ],
)
def test_another_layout_is_refused(archive: Path, name: str, text: str, message: str) -> None:
    (archive / name).write_text(text)
    kind = {"P": "grades", "I": "heights", "R": "notes"}[name[0]]
    with pytest.raises((UserError, Faults)) as error:
        read_table(archive, kind)
    assert message in str(error.value)


def test_missing_parts_and_other_files(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (archive / "images_png" / "notes.docx").write_bytes(b"")
    assert main([str(archive), "--out", str(tmp_path / "m.csv")]) == 2
    assert "notes.docx: is not named like axial_T2_0042_D4.png" in capsys.readouterr().err
    (archive / "IVDHeights.csv").unlink()
    assert main([str(archive), "--out", str(tmp_path / "m.csv")]) == 2
    assert "has no table IVDHeights.csv" in capsys.readouterr().err
