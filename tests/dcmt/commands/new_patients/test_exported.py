"""An exported file makes the same NIfTI and DICOM as its run, but for what names the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from dcmt.cli import main
from dcmt.commands.new_patients.exported import model_of_file
from knee.engine.run import RunFolder
from knee.errors import UserError

from .test_export import patients

__all__ = ["patients"]
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "knee.onnx"
    assert main(["export", str(trained_run.path), "--out", str(path)]) == 0
    return path


def test_maps_and_grades_are_those_of_the_run_and_the_same_at_every_call(
    exported: Path, trained_run: RunFolder, patients: Path, tmp_path: Path
) -> None:
    told = ["--format", "csv,nifti,dicom", "--grade-anyway", "--keep-identity"]
    for name, model in (("run", trained_run.path), ("one", exported), ("two", exported)):
        device = ["--device", "cpu"] if name == "run" else []
        assert main(["predict", str(model), str(patients), "--out", str(tmp_path / name), *told, *device]) == 0
    run, one, two = (_objects(tmp_path / name / "dicom") for name in ("run", "one", "two"))
    assert sorted(one) == sorted(run) and {key: made.SOPInstanceUID for key, made in one.items()} == {
        key: made.SOPInstanceUID for key, made in two.items()
    }
    for key, made in one.items():
        assert made.SOPInstanceUID != run[key].SOPInstanceUID, "of another model, by the hash of the file"
        if made.Modality == "SR":
            found, wanted = (_probability(report) for report in (made, run[key]))
            assert found == pytest.approx(wanted, abs=2e-4), key
        else:
            assert made.pixel_array.shape == run[key].pixel_array.shape
    maps = [_maps(tmp_path / name / "nifti") for name in ("run", "one")]
    assert len(maps[0]) == len(maps[1]) == 3
    for found, wanted in zip(*maps, strict=True):
        # The file scales a map within the image, the export of a run with the padding beside it.
        assert np.abs(found - wanted).max() < 0.05 and np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
    salt = exported.parent / ".case_salt"
    assert salt.stat().st_mode & 0o077 == 0
    assert len(pd.read_csv(tmp_path / "one" / "predictions.csv")) == 5


def _objects(folder: Path) -> dict[tuple[str, str], pydicom.Dataset]:
    """By kind and by what they were made from, since case names differ with the salt."""
    found = {}
    for path in folder.iterdir():
        made = pydicom.dcmread(path)
        kind = path.stem.split("_", 1)[1]
        found[kind, made.StudyInstanceUID + _images(made)] = made
    return found


def _images(made: pydicom.Dataset) -> str:
    return " ".join(sorted(set(_references(made))))


def _references(made: pydicom.Dataset) -> list[str]:
    sources = [item.ReferencedSOPInstanceUID for item in made.get("SourceImageSequence", ())]
    for study in made.get("CurrentRequestedProcedureEvidenceSequence", ()):
        for series in study.ReferencedSeriesSequence:
            sources += [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence]
    return [uid for uid in sources if not uid.startswith("2.25.")]  # not our segmentation


def _probability(report: pydicom.Dataset) -> float:
    (value,) = (float(item.MeasuredValueSequence[0].NumericValue) for item in _items(report) if _is_probability(item))
    return value


def _is_probability(item: pydicom.Dataset) -> bool:
    return item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "probability"


def _items(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    inner = list(dataset.get("ContentSequence") or ())
    return [*inner, *(one for item in inner for one in _items(item))]


def _maps(folder: Path) -> list[np.ndarray]:
    return sorted((nibabel.load(path).get_fdata() for path in folder.iterdir()), key=lambda x: (x.shape, x.sum()))


def test_a_page_needs_the_run_and_a_network_of_another_name_is_refused(
    exported: Path, patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcmt.onnx.file import ExportedNetwork

    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", str(exported), str(patients), *out, "--format", "csv,html"]) == 2
    assert "holds one network, and the page compares two; give the run folder" in capsys.readouterr().err
    assert main(["predict", str(exported), *out]) == 2
    assert "either a path of images, or a study" in capsys.readouterr().err
    network = ExportedNetwork(exported)
    network.card = replace(network.card, network="uncle")
    with pytest.raises(UserError, match="holds the network 'uncle', not teacher or student"):
        model_of_file(exported, network, None, SimpleNamespace())  # type: ignore[arg-type]
