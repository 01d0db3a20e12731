"""The experiment of the flip terms: a trial neither writes over the study nor is gone on with as if it were the study."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import clip_flip
from experiments.clip_flip import ROOT, _options, folder, train


def test_runs_with_other_options_are_other_runs(tmp_path, monkeypatch):
    called: list[list[str]] = []

    def dcmt(arguments: list[str]) -> int:
        called.append(arguments)
        (folder(tmp_path, "clip_small", 0, arguments[7:]) / "checkpoints").mkdir(parents=True, exist_ok=True)
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
def test_a_trial_does_not_write_over_the_studys_tables(tmp_path, trial):
    runs = ["--runs", str(tmp_path)]
    assert _options(runs).out == ROOT / "docs" / "results"
    assert _options([*runs, *trial]).out == tmp_path / "clip_flip"
    assert _options([*runs, *trial, "--out", "here"]).out == Path("here")
