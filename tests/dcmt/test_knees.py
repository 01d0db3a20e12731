"""Knees graded from the slices of their volumes, from training to review."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dcmt.cli import main
from dcmt.config import GraderConfig, LossConfig
from dcmt.losses import ordinal_loss
from dcmt.mean_teacher import MeanTeacher
from dcmt.train import train_grader, training_batches
from dcmt.trained.reference import prefers_severest
from knee.data.prepare import load_knee_data, stacks_of
from knee.data.splits import write_split
from knee.engine.run import RunFolder, create_run
from knee.evaluation.predictions import Predictions
from knee.metrics import quadratic_kappa
from knee.nn.slice_pooling import pool_slices
from knee.task import Batch

from .commands.review.conftest import _cases

Make = Callable[..., GraderConfig]


@pytest.fixture(scope="session")
def knees(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's manifest with one series and one grade for each patient."""
    table = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    table["series"] = table["patient"]
    table["grade"] = table.groupby("patient")["grade"].transform("max")
    for column in ("image", "mask"):
        table[column] = [str(phantom.parent / name) if name else "" for name in table[column]]
    folder = tmp_path_factory.mktemp("knees")
    table.to_csv(folder / "manifest.csv", index=False)
    split = pd.read_csv(phantom.parent / "split.csv", dtype=str)
    split["image"] = [str(phantom.parent / name) for name in split["image"]]
    write_split(folder / "split.csv", split)
    return folder


@pytest.fixture
def config(grader_config: Make, knees: Path) -> GraderConfig:
    data = {"data.manifest": str(knees / "manifest.csv"), "data.split": str(knees / "split.csv")}
    return grader_config(**data, **{"data.labeled_per_batch": 2, "data.slices_per_knee": 3, "loss.attention": 0.0})


def test_a_batch_holds_slices_of_as_many_knees(config: GraderConfig) -> None:
    data = load_knee_data(config.data)
    batch = next(training_batches(config, data, device=torch.device("cpu")).from_batch(0))
    assert len(batch.grades) == 2 * 3
    assert len(batch.student) == (2 + 2) * 3
    assert (batch.grades.reshape(2, 3) == batch.grades[::3, None]).all()
    stacks = stacks_of(data, data.labeled)
    assert sorted(np.concatenate(stacks).tolist()) == list(range(len(data.labeled)))
    assert all(len(set(data.patients.iloc[data.labeled[stack]])) == 1 for stack in stacks)


def test_slices_of_a_knee_are_trained_by_their_pooled_prediction(
    small_grader: Callable[..., nn.Module], small_batch: Callable[..., Batch]
) -> None:
    batch = small_batch(labeled=6, unlabeled=3)._replace(grades=torch.tensor([1, 1, 1, 2, 2, 2]))
    task = MeanTeacher(small_grader(), loss=LossConfig(ordinal=1.0), decay=0.9, ramp_steps=10, slices=3)
    losses = task.losses(batch, 4)
    task.student.train()
    logits = task.student(batch.student).logits[:6].reshape(2, 3, -1)
    pooled = pool_slices(logits)
    grades = torch.tensor([1, 2])
    targets = nn.functional.one_hot(grades, pooled.shape[1]).float()
    torch.testing.assert_close(losses.terms["grade"], nn.functional.cross_entropy(pooled, grades))
    torch.testing.assert_close(losses.terms["ordinal"], ordinal_loss(pooled, targets))
    plain = MeanTeacher(small_grader(), loss=LossConfig(), decay=0.9, ramp_steps=10).losses(batch, 4)
    for name in ("attention", "probability_consistency", "attention_consistency"):
        torch.testing.assert_close(losses.terms[name], plain.terms[name])


def test_a_run_of_knees_is_trained_evaluated_predicted_and_reviewed(
    config: GraderConfig, knees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: RunFolder = create_run(tmp_path / "run", config, kind="grader")
    train_grader(config, run, resume=False)
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    assert "dcmt predict uses severest" in capsys.readouterr().out
    found = json.loads(run.metrics("by_knee_test").read_text(encoding="utf-8"))
    slices = pd.read_csv(run.predictions("test"))
    shares = [f"p_{grade}" for grade in range(3)]
    by_patient = slices.groupby("patient", sort=False)
    logs = [torch.from_numpy(np.log(one[shares].to_numpy()))[None] for _, one in by_patient]
    grades = by_patient["grade"].first().to_numpy()
    predicted = {
        "severest": np.array([int(pool_slices(one)[0].argmax()) for one in logs]),
        "mean": np.array([int(one[0].exp().mean(0).argmax()) for one in logs]),
    }
    for name, graded in predicted.items():
        metrics = found[name]["metrics"]
        assert found[name]["cases"] == len(grades)
        assert metrics["accuracy"]["value"] == pytest.approx((graded == grades).mean(), abs=1e-6)
        assert metrics["kappa"]["value"] == pytest.approx(quadratic_kappa(grades, graded), abs=1e-6)
    assert main(["verify", str(run.path), "--device", "cpu"]) == 0

    out = tmp_path / "review"
    options = ["--split", "test", "--cases", "1", "--format", "html", "--out", str(out)]
    assert main(["review", "export", str(run.path), *options, "--device", "cpu"]) == 0
    records = _cases(out)
    assert len(records) == 4
    assert len({record["case"] for record in records}) == 1
    assert len({record["picture"] for record in records}) == 4
    assert [record["place"] for record in records] == sorted(record["place"] for record in records)


def test_losses_of_single_images_are_refused_with_knees(grader_config: Make) -> None:
    for name, value in (("loss.mixup", 0.2), ("loss.flip_consistency", 1.0)):
        changes = {"data.slices_per_knee": 2, name: value, "loss.attention": 0.0}
        if name == "loss.mixup":
            changes |= {"loss.probability_consistency": 0.0, "loss.attention_consistency": 0.0}
            changes |= {"data.unlabeled_per_batch": 0}
        with pytest.raises(Exception, match=r"slices_per_knee is 2"):
            grader_config(**changes)


def slices_of(*shares: list[float]) -> Predictions:
    p = np.array(shares, np.float32)
    zeros = np.zeros(len(p))
    return Predictions(np.arange(len(p)), p, p.argmax(1), zeros, zeros, zeros > 0, zeros)


def test_the_pooling_that_suits_the_validation_knees_is_chosen() -> None:
    spared, worst = [0.9, 0.05, 0.05], [0.05, 0.05, 0.9]
    slices, series = slices_of(spared, spared, spared, worst, *[spared] * 4), ["a"] * 4 + ["b"] * 4
    assert prefers_severest(slices, np.array([0, 0, 0, 2, 0, 0, 0, 0]), series)
    # A knee that was graded as its usual slice.
    assert not prefers_severest(slices, np.zeros(8, np.int64), series)
    assert not prefers_severest(slices, np.array([0, 0, 0, 2, 0, 0, 0, 0]), [""] * 8)
