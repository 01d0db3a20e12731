"""Graders that are not trained end to end: zero-shot and linear probe."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import dcmt.commands.untrained
from clip_koa.probe import ProbeGrader
from dcmt.cli import main
from dcmt.commands.untrained import PENALTIES, fit_probe
from knee.grades import load_grade_set

from .conftest import refusal

CLIP = {"image": "timm:resnet10t", "text": "small", "pretrained": False, "embed_dim": 16, "stage": 2, "stride": 8}


@pytest.fixture
def clip_file(grader_values, tmp_path) -> Path:
    """A config file of a text head whose runs go to ``tmp_path/runs``."""
    path = tmp_path / "clip.yaml"
    values = grader_values | {"runs": str(tmp_path / "runs"), "model": {"head": "text"}, "clip": CLIP}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def probe_data(monkeypatch):
    """No tower, and four training images and two of validation, these of grade 1 alone; by the metric to choose by."""
    monkeypatch.setattr(
        "dcmt.commands.untrained.embeddings_of", lambda _, images: np.zeros((len(list(images)), 2), np.float32)
    )

    def build(metric):
        return None, SimpleNamespace(
            labeled=np.arange(4),
            grades=np.array([0, 1, 2, 0, 1, 1]),
            grade_set=dataclasses.replace(load_grade_set("cartilage"), best_metric=metric),
            rows=lambda _: np.array([4, 5]),
            loader=lambda rows: [(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), row) for row in rows],
        )

    return build


def test_zero_shot_leaves_a_run_of_one_network(clip_file, tmp_path, phantom, capsys):
    assert main(["zeroshot", "--config", str(clip_file), "--split", "val"]) == 0
    assert "mean of grades" in capsys.readouterr().out
    run = tmp_path / "runs" / "clip-zeroshot"
    found = json.loads((run / "metrics_val.json").read_text(encoding="utf-8"))
    assert "student" not in found
    assert found["checkpoint_step"] == 0
    table = pd.read_csv(run / "local" / "predictions_val.csv")
    assert np.allclose(table[["p_0", "p_1", "p_2"]].sum(axis=1), 1, atol=1e-5)
    image = next((phantom.parent / "images").iterdir())
    out = tmp_path / "predicted"
    assert main(["predict", str(run), str(image), "--out", str(out), "--no-overlays"]) == 0
    assert "has no student" in refusal(capsys, "predict", run, image, "--out", tmp_path / "p", "--student")
    assert "of kind zeroshot" in refusal(capsys, "train", "--resume", run)
    assert main(["zeroshot", "--config", str(clip_file), "--split", "val"]) == 0
    assert (tmp_path / "runs" / "clip-zeroshot-2" / "metrics_val.json").is_file()


def test_zero_shot_needs_no_image_to_train_on(clip_file, phantom, tmp_path, capsys):
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    paths = []
    for name in ("manifest.csv", "split.csv"):
        paths.append(tmp_path / "data" / name)
        pd.read_csv(paths[-1], dtype=str, keep_default_na=False).assign(split="test").to_csv(paths[-1], index=False)
    given = ["--config", clip_file, "--data.manifest", paths[0], "--data.split", paths[1]]
    run = tmp_path / "runs" / "clip-zeroshot"
    assert main([str(argument) for argument in ("zeroshot", *given)]) == 0
    for command in ("evaluate", "verify"):
        assert main([command, str(run)]) == 0
    assert json.loads((run / "metrics_test.json").read_text())["teacher"]["cases"] == 48
    capsys.readouterr()
    assert "no training image has a grade" in refusal(capsys, "probe", *given)


def test_the_probe_is_a_run_too_and_compares_with_trained_ones(clip_file, trained_run, tmp_path, capsys):
    out = tmp_path / "probe"
    assert main(["probe", "--config", str(clip_file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith("inverse penalty") for line in printed.splitlines()) == len(PENALTIES)
    assert main(["compare", str(trained_run.path), str(out), "--no-flip"]) == 0
    assert "flip_changed" not in capsys.readouterr().out
    assert "has no student" in refusal(capsys, "compare", trained_run.path, out, "--network", "student")


def test_a_probe_started_during_another_gets_a_folder_of_its_own(clip_file, tmp_path, monkeypatch):
    fit = dcmt.commands.untrained.fit_probe

    def slow(*arguments, **options):
        monkeypatch.setattr("dcmt.commands.untrained.fit_probe", fit)
        assert main(["probe", "--config", str(clip_file)]) == 0
        return fit(*arguments, **options)

    monkeypatch.setattr("dcmt.commands.untrained.fit_probe", slow)
    assert main(["probe", "--config", str(clip_file)]) == 0
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["clip-probe", "clip-probe-2"]
    assert all((tmp_path / "runs" / name / "metrics_test.json").is_file() for name in runs)


def test_what_a_probe_cannot_do_is_refused_before_it_begins(clip_file, tmp_path, capsys):
    told = refusal(capsys, "probe", "--config", clip_file, "--split", "train")
    assert "or add --trained-on" in told
    assert "cannot be resumed" in refusal(capsys, "zeroshot", "--config", clip_file, "--resume", "runs/clip-zeroshot")
    assert "leads out of the folder of runs" in refusal(
        capsys, "zeroshot", "--config", clip_file, "--name", "../escaped"
    )
    assert not (tmp_path / "runs").exists()


def test_the_sanity_check_of_a_probe_randomises_from_its_classifier_on(clip_file, tmp_path, capsys):
    out = tmp_path / "probe"
    assert main(["probe", "--config", str(clip_file), "--out", str(out)]) == 0
    assert main(["review", "sanity", str(out), "--images", "2", "--steps", "100"]) == 0
    record = json.loads((out / "sanity.json").read_text())["randomisation"]
    assert [row["from_layer"] for row in record[1:3]] == ["classifier", "classifier"]
    assert record[-1]["share"] == 1
    assert not [row for row in record if "text_tower" in row["from_layer"]]


@pytest.mark.parametrize("metric", ["kappa", "auc"])
def test_the_penalty_is_chosen_where_validation_has_one_grade(metric, probe_data, monkeypatch, said: list[str]):
    """Kappa is not defined where all are right, AUC nowhere; all right is then the best, whatever else is 0."""
    grader, data = probe_data(metric)
    right = 1.0

    def fit(grader, embeddings, grades, *, count, inverse_penalty):
        bias = torch.tensor([0.0, 9.0, 0.0] if inverse_penalty == right else [9.0, 0.0, 0.0])
        return ProbeGrader(grader, torch.zeros(3, 2), bias)

    monkeypatch.setattr("dcmt.commands.untrained.fit_linear_probe", fit)
    probe = fit_probe(grader, data, device=torch.device("cpu"), inverse_penalty=None)
    assert probe.classifier.bias.tolist() == [0.0, 9.0, 0.0]
    assert any(f"{metric} is undefined on these 2 validation images" in line for line in said)
    right = None
    probe = fit_probe(grader, data, device=torch.device("cpu"), inverse_penalty=None)
    assert probe.classifier.bias.tolist() == [9.0, 0.0, 0.0]


def test_untrained_graders_need_a_text_head(grader_values, tmp_path, capsys):
    path = tmp_path / "linear.yaml"
    path.write_text(yaml.safe_dump(grader_values | {"runs": str(tmp_path)}))
    for command in ("zeroshot", "probe"):
        assert "model.head: text" in refusal(capsys, command, "--config", path)
    assert not (tmp_path / "linear-zeroshot").exists()


def test_the_weights_of_another_run_are_not_used_and_the_option_is_refused(clip_file, trained_run, tmp_path, capsys):
    for command in ("zeroshot", "probe"):
        told = refusal(capsys, command, "--config", clip_file, "--model.start", trained_run.path)
        assert "remove model.start" in told
    assert not (tmp_path / "runs").exists()


def test_help_lists_own_and_config_options(capsys):
    assert main(["probe", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--inverse-penalty" in printed
    assert "--clip.image" in printed


def test_the_penalty_must_be_above_0(clip_file, capsys):
    assert "above 0" in refusal(capsys, "probe", "--config", clip_file, "--inverse-penalty", "0")
