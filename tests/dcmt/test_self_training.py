"""Self-training: the arithmetic of soft targets, their file and its guards, rounds that resume, and the twin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.self_training import Rounds, self_train, soft_targets, student_config
from knee.data.prepare import load_knee_data
from knee.engine.tracking import read_metrics
from knee.errors import UserError

Make = Callable[..., GraderConfig]


def test_targets_are_the_sharpened_mean_aligned_to_the_prior() -> None:
    predictions = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.7, 0.3], [0.5, 0.5]]])
    even = torch.tensor([0.5, 0.5])
    mean = torch.tensor([0.8, 0.2])
    sharp = torch.stack([mean**2 / (mean**2).sum(), even])
    scaled = sharp * even / sharp.mean(0)
    torch.testing.assert_close(soft_targets(predictions, even), scaled / scaled.sum(1, keepdim=True))
    plain = soft_targets(predictions, torch.tensor([0.65, 0.35]), temperature=1)
    torch.testing.assert_close(plain, torch.stack([mean, even]))  # their mean is the prior already


def test_alignment_raises_a_grade_that_is_predicted_too_rarely() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = (3 * torch.randn(2, 400, 5, generator=generator) - torch.tensor([0.0, 3, 0, 0, 0])).softmax(2)
    prior = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1])
    found = soft_targets(predictions, prior)
    torch.testing.assert_close(found.sum(1), torch.ones(400))
    before = soft_targets(predictions, predictions.mean((0, 1)))
    assert (found.mean(0)[1] - prior[1]).abs() < (predictions.mean((0, 1))[1] - prior[1]).abs()
    assert found[:, 1].mean() > before[:, 1].mean()


def test_impossible_predictions_stay_finite() -> None:
    found = soft_targets(torch.eye(3)[None, [0, 0]], torch.tensor([0.0, 0.5, 0.5]))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_a_student_weighs_every_image_the_same(grader_config: Make) -> None:
    config = grader_config(
        **{"data.labeled_per_batch": 16, "data.unlabeled_per_batch": 0, "loss.attention_consistency": 0.0}
    )
    student = student_config(config, Path("targets.csv"), Rounds(labeled_share=0.3))
    assert (student.data.labeled_per_batch, student.data.unlabeled_per_batch) == (5, 11)
    assert student.loss.grade / 5 == pytest.approx(student.loss.self_training / 11)
    assert student.loss.grade + student.loss.self_training == pytest.approx(1)


def test_students_have_steps_of_their_own(grader_config: Make, tmp_path: Path) -> None:
    config = supervised(grader_config, tmp_path)
    assert student_config(config, Path("t.csv"), Rounds()).fit == config.fit
    last = self_train(config, Rounds(rounds=1, networks=1, student_steps=6), tmp_path / "st")
    assert last is not None
    steps = {
        path.name: max(step for step, _, _ in read_metrics(path / "metrics.csv")) for path in last.parent.glob("round*")
    }
    assert steps == {"round0-s1": 4, "round1-s1": 6}


def supervised(make: Make, tmp_path: Path) -> GraderConfig:
    config = make(
        **{
            "data.unlabeled_per_batch": 0,
            "data.allow_missing_grades": True,
            "loss.probability_consistency": 0.0,
            "loss.attention_consistency": 0.0,
            "loss.attention": 0.0,
            "fit.steps": 4,
            "fit.validate_every": 2,
        }
    )
    return replace(config, runs=str(tmp_path))


def test_rounds_write_targets_of_unlabeled_images_and_continue(
    grader_config: Make, tmp_path: Path, said: list[str]
) -> None:
    config, folder = supervised(grader_config, tmp_path), tmp_path / "st"
    last = self_train(config, Rounds(rounds=1, networks=2), folder)
    assert last == folder / "round1-s1"
    assert sorted(path.name for path in folder.glob("round*")) == ["round0-s1", "round0-s2", "round1-s1"]
    data = load_knee_data(config.data)
    table = pd.read_csv(folder / "local" / "targets-round1.csv")
    assert sorted(table["image"]) == sorted(data.manifest.table["image"].iloc[data.unlabeled])
    np.testing.assert_allclose(table[["p_0", "p_1", "p_2"]].sum(axis=1), 1, atol=1e-5)
    origin = json.loads((folder / "local" / "targets-round1.json").read_text())
    assert [one["run"] for one in origin["networks"]] == ["round0-s1", "round0-s2"]
    assert (origin["labeled_images"], origin["images"]) == (0, len(data.unlabeled))
    assert {name for _, name, _ in read_metrics(last / "metrics.csv")} >= {"loss/grade", "loss/self_training"}

    # Without its last checkpoint the student continues; finished networks and the targets are left as they are.
    before = (folder / "local" / "targets-round1.csv").stat().st_mtime_ns
    shutil.rmtree(last / "checkpoints" / "step_00000004")
    for continued in ([last], []):
        said.clear()
        assert self_train(config, Rounds(rounds=1, networks=2), folder) == last
        assert [line for line in said if "continuing" in line] == [f"\ncontinuing {path}" for path in continued]
    assert (folder / "local" / "targets-round1.csv").stat().st_mtime_ns == before

    # A student is not continued on other targets.
    shutil.rmtree(last / "checkpoints" / "step_00000004")
    text = (folder / "local" / "targets-round1.csv").read_text()
    (folder / "local" / "targets-round1.csv").write_text(text + "\n")
    with pytest.raises(UserError, match="changed since the run was started; restore it, or start a new run"):
        self_train(config, Rounds(rounds=1, networks=2), folder)
    (folder / "local" / "targets-round1.csv").write_text(text)

    with pytest.raises(UserError, match="was predicted with other --networks or --temperature; give those"):
        self_train(config, Rounds(rounds=1, networks=2, temperature=0.7), folder)
    with pytest.raises(UserError, match="was trained with other options; give those, or another --name"):
        self_train(replace(config, fit=replace(config.fit, steps=6)), Rounds(rounds=1, networks=2), folder)

    # The twin has the same first networks, and targets of labeled images only.
    twin = self_train(config, Rounds(rounds=1, networks=2, twin=True), folder)
    assert twin == folder / "twin-round1-s1"
    table = pd.read_csv(folder / "local" / "targets-twin-round1.csv")
    assert sorted(table["image"]) == sorted(data.manifest.table["image"].iloc[data.labeled])


def test_nothing_to_predict_is_refused(grader_config: Make, tmp_path: Path) -> None:
    config = supervised(grader_config, tmp_path)
    config = replace(config, data=replace(config.data, labeled_fraction=1.0))
    with pytest.raises(UserError, match="all training images are labeled; give a lower --labeled-fraction, or --twin"):
        self_train(config, Rounds(), tmp_path / "st")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; it must be 1 or more"),
        (["--student-steps", "-1"], "--student-steps is -1; it must be 0 or more"),
        (["--temperature", "0"], "--temperature is 0.0; it must be above 0"),
        (["--labeled-share=1"], "--labeled-share is 1.0"),
        (["--resume", "runs/x"], "self-train has no --resume"),
        (["--method", "fixmatch"], "self-train needs method: mean_teacher"),
    ],
)
def test_refused_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = ["--data.unlabeled_per_batch=0", f"--runs={tmp_path}", "--fixmatch.unlabeled_weight=0"]
    more = ["--loss.probability_consistency=0", "--loss.attention_consistency=0"]
    fixmatch = base + more if "fixmatch" in options else []
    assert main(["self-train", *fixmatch, *options]) == 2
    assert message in capsys.readouterr().err
