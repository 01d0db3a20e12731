"""The experiment of the review loop: what it writes beside data that others share, and its gain."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.review_circle import Graded, data_manifest, gain, make_start, read_truth


def test_experiments_in_folders_of_one_name_keep_their_manifests_apart(tmp_path):
    def options(place: str, fraction: float) -> Namespace:
        named = {"folder": tmp_path / place / "circle", "data": tmp_path / "data", "patients": 14, "size": 32}
        return Namespace(**named, fraction=fraction, wrong=0.25)

    base = data_manifest(options("a", 0.3))
    truth = read_truth(base.parent / "truth.csv")
    first = make_start(options("a", 0.3), base, truth, 0)
    kept = first.manifest.read_text(encoding="utf-8")
    second = make_start(options("b", 0.9), base, truth, 0)
    assert second.labeled > first.labeled
    assert first.manifest.read_text(encoding="utf-8") == kept
    assert make_start(options("a", 0.3), base, truth, 0) == first
    grades = pd.read_csv(second.manifest).set_index("image")["grade"]
    known = grades.dropna()
    training = pd.read_csv(second.split).query("split == 'train'")["image"]
    assert known.index.isin(training).sum() == second.labeled
    assert {image for image, grade in known.items() if grade != truth[image]} == second.wrong
    assert len(second.wrong) == round(0.25 * second.labeled) > 0


def graded(predicted: list[int]) -> Graded:
    return Graded(np.array(predicted), np.array([0, 0, 1, 1]), np.array(["a", "a", "b", "b"]))


def test_the_gain_is_the_mean_over_seeds_of_doubted_minus_random_macro_f1():
    """One seed 1 − 1/3 (all of grade 0: F1 2/3 and 0), the other 11/15 − 1 (one of grade 1 missed: F1 4/5 and 2/3)."""
    right, zeros, one_missed = graded([0, 0, 1, 1]), graded([0, 0, 0, 0]), graded([0, 0, 1, 0])
    first, second = {"random": zeros, "doubted": right}, {"random": right, "doubted": one_missed}
    assert gain([first], 2)[0] == pytest.approx(2 / 3)
    assert gain([second], 2)[0] == pytest.approx(-4 / 15)
    value, low, high = gain([first, second], 2)
    assert value == pytest.approx(1 / 5)
    assert low <= value <= high
    assert gain([{"random": one_missed, "doubted": one_missed}], 2) == (0, 0, 0)


@pytest.mark.slow
def test_the_experiment_of_the_circle_runs(tmp_path, command_environment):
    """The machinery alone, in a few steps: its numbers are measured in docs/results."""
    config = tmp_path / "tiny.yaml"
    values = {
        "data": {"labeled_per_batch": 4, "unlabeled_per_batch": 2},
        "model": {"backbone": "resnet10t", "stage": 2, "stride": 8},
        "fit": {"steps": 2, "validate_every": 2, "precision": "fp32", "device": "cpu", "threads": 1},
        "report": {"tensorboard": False, "cases": 1, "bootstrap": 100},
    }
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "experiments.review_circle", "--folder", str(tmp_path / "circle")]
    command += [
        "--patients",
        "14",
        "--size",
        "48",
        "--fraction",
        "0.6",
        "--wrong",
        "0.2",
        "--cases",
        "4",
        "--again",
        "3",
    ]
    command += ["--config", str(config), "--out", str(tmp_path / "results.md")]
    for jobs in ("2", "1"):  # again: what is done is not done anew
        done = subprocess.run(
            [*command, "--jobs", jobs],
            env=command_environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "s0_start: done" in done.stdout
        row = (tmp_path / "results.md").read_text().splitlines()[6].split("|")
        assert row[1].strip() == "0" and len(row) == 11
        assert all(0 <= float(value) <= 1 for value in row[4:7])
    labels = sorted((tmp_path / "circle" / "data").glob("circle_*.csv"))
    graded = [int(pd.read_csv(path)["grade"].notna().sum()) for path in labels]
    assert sorted(graded) == [min(graded), min(graded) + 4, min(graded) + 4]
