"""``dcmt crop`` on films that the test draws: DICOM tags, the way on to check and split, refusals of two knees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from dcmt.cli import main
from dcmt.trained.loaded import load_run
from knee.data.check import check_data
from knee.engine.run import RunFolder
from knee.errors import Faults
from knee.grades import load_grade_set
from knee.phantom.scenes import Scene, draw_scene


def film(number: int, kind: str = "both") -> Scene:
    return draw_scene(seed=6, number=number, kind=kind, longest=300)  # type: ignore[arg-type]


def write_dicom(path: Path, scene: Scene, **fields: Any) -> None:
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    image.Rows, image.Columns = scene.image.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelData = (scene.image.astype(np.uint16) * 16).tobytes()
    for name, value in fields.items():
        setattr(image, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def test_dicom_films_become_a_manifest_that_the_other_commands_take(tmp_path: Path, capsys) -> None:
    films, out = tmp_path / "films", tmp_path / "crops"
    for number in range(3):
        scene = film(number)
        spacing = [scene.spacing_mm, scene.spacing_mm]
        write_dicom(films / f"IM{number}", scene, PatientID=f"P{number}", ImagerPixelSpacing=spacing)
    write_dicom(films / "IM3", film(3), PatientID="P3", PatientOrientation=["R", "F"])
    single = film(4, "single")
    write_dicom(films / "IM4", single, PatientID="P4", Laterality="R" if single.knees[0].side == "L" else "L")
    assert main(["crop", str(films), "--out", str(out)]) == 0
    assert "check the 1 contact sheet" in capsys.readouterr().out
    table = pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False).set_index("image")
    assert table["side"].drop_duplicates().isin(["L", "R"]).all()
    left = table.loc["P0_R.png"]  # of a film seen as if facing the patient
    assert int(left["box"].split()[0]) < int(table.loc["P0_L.png", "box"].split()[0])
    assert int(left["box"].split()[3]) <= round(140 / film(0).spacing_mm) + 1
    assert float(left["spacing_mm"]) == pytest.approx(film(0).spacing_mm, rel=1e-4)
    mirrored = table[table["source"] == "IM3"]["box"].map(lambda box: int(box.split()[0]))
    assert mirrored["P3_L.png"] < mirrored["P3_R.png"]
    assert table.loc[table["source"] == "IM4", "side_from"].tolist() == ["file"]
    found = check_data(out / "manifest.csv", load_grade_set("kl"), progress=False)
    assert not found.faults()
    assert not any("two knees" in remark for remark in found.remarks)
    # dcmt manifest reads the same patients and sides from the names of the crops.
    assert main(["manifest", str(out), "--out", str(tmp_path / "again.csv")]) == 0
    again = pd.read_csv(tmp_path / "again.csv", dtype=str, keep_default_na=False)
    again["image"] = again["image"].map(lambda name: Path(name).name)
    again = again.set_index("image")
    assert again["patient"].to_dict() == table["patient"].to_dict()
    assert again["side"].to_dict() == table["side"].to_dict()
    assert main(["split", str(out / "manifest.csv"), "--out", str(tmp_path / "split.csv")]) == 0


def test_films_without_a_knee_and_folders_in_use_are_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8)
    cv2.imwrite(str(tmp_path / "in" / "7.png"), noise)
    assert main(["crop", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "no knee found in 1 image" in capsys.readouterr().err
    assert (tmp_path / "out" / "rejected.csv").read_text() == "image,reason\n7.png,no knee joint was found\n"
    (tmp_path / "in" / "7.png").rename(tmp_path / "in" / "=1+1.png")
    assert main(["crop", str(tmp_path / "in"), "--out", str(tmp_path / "formula")]) == 2
    assert "\n'=1+1.png,no knee" in (tmp_path / "formula" / "rejected.csv").read_text(), "no formula in a spreadsheet"
    capsys.readouterr()
    assert main(["crop", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "out is not empty" in capsys.readouterr().err


def test_two_knees_get_no_grade_and_a_remark(trained_run: RunFolder, tmp_path: Path) -> None:
    films = tmp_path / "two knees"
    films.mkdir()
    cv2.imwrite(str(films / "7.png"), film(0).image)
    with pytest.raises(Faults, match=r"shows two knees, .* dcmt crop '.*two knees' --out crops"):
        load_run(trained_run.path, checkpoint="best", device="cpu").predict([films / "7.png"])
    (films / "manifest.csv").write_text("image,patient,side,grade,mask\n7.png,7,,0,\n")
    (remark,) = check_data(films / "manifest.csv", load_grade_set("kl"), progress=False).remarks
    assert remark.startswith("1 image (line 2) of two knees")
