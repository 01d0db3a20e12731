"""The experiment of the flip losses: a trial neither overwrites the study's tables nor is resumed as if it were the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import clip_flip
from experiments.clip_flip import ROOT, _options, folder, tabulate, train
from knee.evaluation.predictions import Predictions


def test_runs_with_other_options_are_other_runs(tmp_path, monkeypatch):
    called: list[list[str]] = []

    def dcmt(arguments: list[str]) -> int:
        called.append(arguments)
        (folder(tmp_path, "clip_small", 0, arguments[6:]) / "checkpoints").mkdir(parents=True, exist_ok=True)
        return 0

    monkeypatch.setattr(clip_flip, "dcmt", dcmt)
    train(tmp_path, "clip_small", 0, ["--fit.epochs=1"])
    train(tmp_path, "clip_small", 0, [])
    train(tmp_path, "clip_small", 0, ["--fit.epochs=4"])
    assert not [arguments for arguments in called if "--resume" in arguments]
    assert len({arguments[3] for arguments in called}) == 3
    train(tmp_path, "clip_small", 0, ["--fit.epochs=1"])
    assert called[3] == ["train", "--resume", str(folder(tmp_path, "clip_small", 0, ["--fit.epochs=1"]))]


@pytest.mark.parametrize("trial", [["--fit.epochs", "1"], ["--seeds", "0"], ["--configs", "clip_small"]])
def test_a_trial_does_not_overwrite_the_studys_tables(tmp_path, trial):
    runs = ["--runs", str(tmp_path)]
    assert _options(runs).out == ROOT / "docs" / "results"
    assert _options([*runs, *trial]).out == tmp_path / "clip_flip"
    assert _options([*runs, *trial, "--out", "here"]).out == Path("here")


def test_the_table_holds_each_seed_their_mean_and_the_difference_of_the_arms():
    grades, patients = np.array([0, 1, 2, 4]), ["a", "a", "b", "b"]

    def predictions(predicted: list[int], changed: list[bool]) -> Predictions:
        nothing = np.zeros(4)
        return Predictions(
            rows=np.arange(4),
            probabilities=np.eye(5, dtype=np.float32)[predicted],
            predicted=np.array(predicted),
            entropy=nothing,
            map_maximum=nothing,
            empty=nothing > 0,
            iou=nothing,
            flip_divergence=np.array(changed) * 0.5,
            flip_changed=np.array(changed),
        )

    plain = [
        predictions([0, 1, 0, 0], [True, True, False, False]),
        predictions([0, 1, 2, 0], [True, False, False, False]),
    ]
    terms = [predictions([0, 1, 2, 4], [False] * 4), predictions([1, 1, 2, 3], [False] * 4)]
    found = {
        (arm, network, seed): one
        for arm, two in (("plain", plain), ("terms", terms))
        for network in ("student", "teacher")
        for seed, one in enumerate(two)
    }
    table = tabulate(found, grades, patients, ["plain", "terms"], [0, 1]).set_index(["network", "run", "metric"])
    columns = ["seed_0", "seed_1", "mean"]
    for name, wanted in {
        ("plain", "accuracy"): [2 / 4, 3 / 4, 5 / 8],
        ("terms", "accuracy"): [1, 2 / 4, 6 / 8],
        ("terms − plain", "accuracy"): [2 / 4, -1 / 4, 1 / 8],
        ("terms", "adjacent"): [1, 1, 1],
        ("plain", "flip_changed"): [2 / 4, 1 / 4, 3 / 8],
        ("terms − plain", "flip_divergence"): [-1 / 4, -1 / 8, -3 / 16],
    }.items():
        row = table.loc[("teacher", *name)]
        assert row[columns].tolist() == pytest.approx(wanted)
        assert row["low"] <= row["mean"] <= row["high"]
    # The patients' means of the two seeds' differences in accuracy are 0 − 1/4 and 1/2 + 0: no draw of patients gives more.
    row = table.loc[("teacher", "terms − plain", "accuracy")]
    assert (row["low"], row["high"]) == (-1 / 4, 1 / 2)
