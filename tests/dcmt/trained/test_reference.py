"""Temperatures and familiarity of a run: stored with its checkpoint, used everywhere, refused where they are not valid."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from safetensors.numpy import load_file, save_file

import dcmt
from dcmt.cli import main
from dcmt.trained.loaded import LoadedRun, load_data, load_run, with_reference
from dcmt.trained.reference import Image, mode, open_reference
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.images.geometry import square_geometry
from knee.metrics import expected_calibration_error
from knee.nn.temperature import tempered
from tests.hostile import copied


@pytest.fixture(scope="module")
def calibrated(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with temperatures, for which it has too few validation images; not to be changed."""
    run = copied(trained_run.path, tmp_path_factory.mktemp("calibrated") / "tiny")
    record(run).unlink()
    loaded = load(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcmt.trained.reference._LEAST_GRADED", 1)
        with_reference(loaded, load_data(loaded))
    return run


@pytest.fixture
def run(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where evaluation may fit temperatures, too."""
    monkeypatch.setattr("dcmt.trained.reference._LEAST_GRADED", 1)
    return copied(calibrated, tmp_path / "tiny")


def load(run: Path, **options: object) -> LoadedRun:
    return load_run(run, checkpoint="best", device="cpu", **options)  # type: ignore[arg-type]


def record(run: Path) -> Path:
    return load(run).checkpoint.folder / "reference.json"


def noise(folder: Path, name: str = "noise.png", shape: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return folder / name


def write_dicom(path: Path, values: np.ndarray, modality: str) -> None:
    dataset = FileDataset(path, {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.Modality = 1, "MONOCHROME2", modality
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = values.astype(np.uint8).tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def test_training_stores_it_but_no_temperature_from_few_images(trained_run: RunFolder) -> None:
    stored = load(trained_run.path).reference
    assert stored is not None and stored.familiarity is not None and stored.temperatures == {}


def test_a_run_keeps_it_with_its_best_checkpoint_and_loads_the_same(run: Path) -> None:
    loaded = load(run)
    assert loaded.reference is not None and loaded.reference.familiarity is not None
    networks = {mode(name, flip_tta=tta) for name in ("student", "teacher") for tta in (False, True)}
    assert loaded.temperatures.keys() == networks
    path = record(run)
    before, arrays = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    path.unlink()
    without = load(run)
    assert without.reference is None and without.temperature("teacher") is None
    again = with_reference(without, load_data(without))
    assert json.loads(path.read_text()) == before
    for name, values in load_file(path.with_suffix(".safetensors")).items():
        np.testing.assert_array_equal(values, arrays[name])
    assert with_reference(again, load_data(again)) is again


def test_grades_stay_and_probabilities_change_by_the_temperature(run: Path, phantom: Path) -> None:
    path = record(run)
    values = json.loads(path.read_text())
    paths = sorted((phantom.parent / "images").rglob("*.png"))[:6]
    values["temperatures"] = {"teacher": 1.0}
    path.write_text(json.dumps(values))
    before = dcmt.load(run, device="cpu").predict(paths, grade_anyway=True)
    values["temperatures"] = {"teacher": 2.5}
    path.write_text(json.dumps(values))
    after = dcmt.load(run, device="cpu").predict(paths, grade_anyway=True)
    shares = [name for name in before if name.startswith("p_")]
    assert before["grade"].tolist() == after["grade"].tolist()
    np.testing.assert_allclose(after[shares], tempered(before[shares].to_numpy(float), 2.5), atol=1e-5)


def test_evaluate_reports_the_error_before_and_after(run: Path) -> None:
    record(run).unlink()
    assert main(["evaluate", str(run), "--split", "val", "--no-flip"]) == 0
    report = json.loads((run / "metrics_val.json").read_text())
    table = pd.read_csv(run / "local" / "predictions_val.csv")
    shares = table[[name for name in table if name.startswith("p_")]].to_numpy()
    temperature = report["teacher"]["temperature"]
    assert temperature == load(run).temperature("teacher")
    graded, grades = table["grade"].notna(), table["grade"].dropna().to_numpy(int)
    for name, values in (("ece", shares), ("ece_uncalibrated", tempered(shares, 1 / temperature))):
        entry = report["teacher"]["metrics"][name]
        assert entry["value"] == pytest.approx(expected_calibration_error(values[graded], grades), abs=1e-5)
        assert entry["low"] is None  # all are of one patient
    assert table["predicted"].notna().all() and table["familiarity"].between(0, 1).all()
    assert report["unlike_training"] == table["unlike_training"].notna().sum()
    assert main(["verify", str(run), "--split", "val", "--device", "cpu"]) == 0


def test_predictions_from_before_are_still_verified(run: Path) -> None:
    """Metrics written before there was a temperature belong to the temperature 1."""
    assert main(["evaluate", str(run), "--split", "val", "--no-flip"]) == 0
    stored, folder = record(run).read_bytes(), record(run)
    values = json.loads(stored)
    folder.write_text(json.dumps({**values, "temperatures": {}}))
    assert main(["evaluate", str(run), "--split", "val", "--no-flip"]) == 0
    folder.write_bytes(stored)
    assert main(["verify", str(run), "--split", "val", "--device", "cpu"]) == 0


def test_foreign_images_get_no_grade_but_the_others_do(run: Path, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    noise(folder)
    images = pd.read_csv(phantom)["image"]
    loaded = load(run)
    data = load_data(loaded)
    for row in data.rows("train")[:3]:
        shutil.copy(phantom.parent / images[row], folder / f"knee{row}.png")
    out = tmp_path / "out"
    assert main(["predict", str(run), str(folder), "--out", str(out), "--device", "cpu"]) == 0
    table = pd.read_csv(out / "predictions.csv").set_index("image")
    foreign = table.loc["noise.png"]
    assert foreign["reason"] == "it is unlike the training images" and foreign["unlike_training"]
    assert foreign["familiarity"] == 0 and foreign[["predicted", "predicted_name", "p_0", "entropy"]].isna().all()
    others = table.drop("noise.png")
    assert others["reason"].isna().all() and others["predicted"].notna().all()
    assert sorted(path.name for path in (out / "overlays").glob("*.png")) == sorted(
        f"{name}.png" for name in others.index
    )
    anyway = ["predict", str(run), str(folder), "--out", str(out), "--device", "cpu", "--force", "--grade-anyway"]
    assert main(anyway) == 0
    graded = pd.read_csv(out / "predictions.csv").set_index("image")
    assert graded["predicted"].notna().all() and graded.loc["noise.png", "reason"] == foreign["reason"]
    door = loaded.predict([folder / "noise.png"])
    assert door["grade"].isna().all() and door["reason"].tolist() == [foreign["reason"]]
    assert loaded.predict([folder / "noise.png"], grade_anyway=True)["grade"].notna().all()


def test_another_modality_is_a_reason(run: Path, tmp_path: Path) -> None:
    loaded = load(run)
    assert loaded.reference is not None and loaded.reference.modalities == ()
    known = dataclasses.replace(loaded.reference, modalities=("DX",), familiarity=None)
    square = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)

    def reason(height: int, width: int, modality: str) -> str:
        image = Image(square, square_geometry(height, width, 48), modality)
        return known.marks([image], loaded.bare["teacher"], device=loaded.device, precision=None).reasons[0]

    assert reason(50, 50, "") == reason(50, 50, "CR") == reason(50, 50, "DX") == ""
    assert reason(50, 50, "MR") == "its modality is MR, that of the training images DX"
    record(run).write_text(json.dumps({**json.loads(record(run).read_text()), "modalities": ["MR"]}))
    write_dicom(tmp_path / "knee.dcm", square, "DX")
    found = dcmt.load(run, device="cpu").predict([tmp_path / "knee.dcm"])
    assert found["reason"].tolist() == ["its modality is DX, that of the training images MR"]


def test_a_run_without_it_says_so_and_grades(run: Path, tmp_path: Path, said: list[str]) -> None:
    record(run).unlink()
    noise(tmp_path / "in")
    options = ["--out", str(tmp_path / "out"), "--device", "cpu", "--no-overlays"]
    assert main(["predict", str(run), str(tmp_path / "in"), *options]) == 0
    assert any(f"temperature 1); add both with: dcmt evaluate {run} --split val" in line for line in said)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["predicted"].notna().all() and table["familiarity"].isna().all() and not table["unlike_training"].any()


def test_it_is_ignored_for_other_weights_and_measured_again_for_another_manifest(run: Path) -> None:
    path = record(run)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "teacher_sha256": "0" * 64}))
    assert load(run).reference is None
    path.write_text(json.dumps({**values, "manifest_sha256": "0" * 16, "temperatures": {}}))
    loaded = load(run)
    assert loaded.reference is not None and not loaded.temperatures
    assert with_reference(loaded, load_data(loaded)).temperatures == values["temperatures"]


HOSTILE = {
    "temperatures": [
        None,
        [],
        {"teacher": 0},
        {"teacher": -1.0},
        {"teacher": "1"},
        {"teacher": True},
        {"teacher": 1e9},
    ],
    "modalities": [None, {}, "MR", [1], ["a" * 17], ["a\nb"], [""], ["MR"] * 21],
    "severest": [None, 1, "true", []],
    "arrays_sha256": [None, "", 3, []],
}


@pytest.mark.parametrize("field", list(HOSTILE))
def test_values_that_are_not_valid_are_refused(field: str, run: Path) -> None:
    path = record(run)
    values = json.loads(path.read_text())
    loaded = load(run)
    for value in HOSTILE[field]:
        path.write_text(json.dumps({**values, field: value}))
        with pytest.raises(UserError, match=r"reference\.json is not valid .*remove it, and dcmt evaluate measures"):
            open_reference(loaded.checkpoint)
    path.write_text(json.dumps({name: value for name, value in values.items() if name != field}))
    if field == "severest":  # references of earlier versions do not have it
        reference = open_reference(loaded.checkpoint)
        assert reference is not None and not reference.severest
        return
    with pytest.raises(UserError, match="is not valid"):
        open_reference(loaded.checkpoint)


def test_arrays_that_are_not_valid_are_refused(run: Path) -> None:
    loaded, path = load(run), record(run)
    values, file = json.loads(path.read_text()), path.with_suffix(".safetensors")
    arrays = load_file(file)

    def refused(reason: str) -> None:
        import hashlib

        path.write_text(json.dumps({**values, "arrays_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
        with pytest.raises(UserError, match=reason):
            open_reference(loaded.checkpoint)

    size = len(arrays["center"])
    changes = {
        "center": [np.zeros(size + 1), np.zeros((size, 1)), np.full(size, np.nan), np.zeros(0)],
        "whitening": [np.zeros((size, size + 1)), np.full((size, size), np.inf), np.zeros(size)],
        "means": [np.zeros((0, size)), np.zeros((2, size + 1)), np.zeros(size)],
        "distances": [np.zeros(0), np.zeros((1, 1)), np.array([2.0, 1.0])],
        "more": [np.zeros(1)],
    }
    for name, others in changes.items():
        for other in others:
            file.unlink()
            save_file({**arrays, name: other.astype(np.float32)}, file)
            refused("is not valid")
    for name in ("center", "distances"):
        file.unlink()
        save_file({key: value for key, value in arrays.items() if key != name}, file)
        refused("is not valid")
    file.unlink()
    file.write_bytes(b"\xff" * 64)
    refused("not a safetensors file")
    file.unlink()
    with pytest.raises(UserError, match="is not valid"):
        open_reference(loaded.checkpoint)
