"""dcmt evaluate: what it reports is what its predictions give, and nothing else is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dcmt.cli import main
from knee.engine.run import RunFolder
from knee.metrics import quadratic_kappa


@pytest.fixture
def run(trained_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the tiny run to evaluate."""
    return RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "run")))


def test_the_report_is_computed_from_the_predictions_that_it_writes(run: RunFolder, capsys) -> None:
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    found = json.loads(run.metrics("test").read_text(encoding="utf-8"))
    table = pd.read_csv(run.predictions("test"))
    assert run.predictions("test").stat().st_mode & 0o077 == 0, "names patients"
    probabilities = table[["p_0", "p_1", "p_2"]].to_numpy()
    predicted, grades = probabilities.argmax(axis=1), table["grade"].to_numpy()
    metrics = found["teacher"]["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx((predicted == grades).mean(), abs=1e-6)
    assert metrics["kappa"]["value"] == pytest.approx(quadratic_kappa(grades, predicted), abs=1e-6)
    assert metrics["mae"]["value"] == pytest.approx(np.abs(predicted - grades).mean(), abs=1e-6)
    for name in ("accuracy", "macro_f1", "mae"):
        change = metrics[name]["value"] - found["student"]["metrics"][name]["value"]
        assert found["teacher_minus_student"][name]["value"] == pytest.approx(change, abs=2e-6)
    assert np.sum(found["teacher"]["confusion"]) == found["teacher"]["cases"] == len(table)
    printed = capsys.readouterr().out
    assert f"{metrics['kappa']['value']:.3f}" in printed
    assert {path.name for path in run.figures.iterdir()} >= {
        "confusion_test.png",
        "reliability_test.png",
        "roc_test.png",
    }


def test_a_split_without_images_is_refused(run: RunFolder, phantom: Path, tmp_path: Path, capsys) -> None:
    import yaml

    split = pd.read_csv(phantom.parent / "split.csv", dtype=str)
    split.loc[split["split"] == "val", "split"] = "test"
    split.to_csv(tmp_path / "split.csv", index=False)
    private = run.local / "paths.yaml"
    paths = yaml.safe_load(private.read_text()) | {"data.split": str(tmp_path / "split.csv")}
    private.write_text(yaml.safe_dump(paths))
    assert main(["evaluate", str(run.path), "--split", "val", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("dcmt: ")
    assert not run.metrics("val").exists()
