"""A whole tiny run: what it leaves behind, resuming it from its folder, masks absent, and the choice of precision."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from dcmt.trained.loaded import load_run
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run, open_run
from knee.engine.tracking import read_metrics
from knee.errors import UserError
from knee.grades import grade_set_yaml, load_grade_set

from .conftest import weights

Make = Callable[..., GraderConfig]


def test_run_folder_holds_what_it_should(trained_run: RunFolder) -> None:
    names = {path.relative_to(trained_run.path).as_posix() for path in trained_run.path.rglob("*")}
    assert {"config.yaml", "metrics.csv", "local/split.csv", "local/cases.csv", "local/paths.yaml"} <= names
    assert "checkpoints/step_00000006/teacher.safetensors" in names
    state = json.loads((trained_run.path / "checkpoints/step_00000006/state.json").read_text())
    assert {"versions", "manifest_sha256", "split_sha256", "pixels_sha256", "precision", "progress"} <= set(state)
    assert all(path.stat().st_mode & 0o077 == 0 for path in trained_run.local.iterdir())


def test_teacher_is_not_the_student_and_both_load(trained_run: RunFolder) -> None:
    loaded = load_run(trained_run.path, checkpoint="last", device="cpu")
    student, teacher = (loaded.networks[name].state_dict() for name in ("student", "teacher"))
    assert student.keys() == teacher.keys()
    learned = [name for name in student if name.endswith(".weight")]
    assert len(learned) > 10
    assert not any(torch.equal(student[name], teacher[name]) for name in learned)


@pytest.mark.parametrize("workers", [0, 2])
def test_run_resumed_from_its_folder_equals_the_undisturbed_one(
    workers: int, trained_run: RunFolder, tmp_path: Path, grader_config: Make, said: list[str]
) -> None:
    """The run is cut back to its checkpoint of step 3, in the middle of an epoch, and resumed."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_run.path, run.path)
    shutil.rmtree(run.path / "checkpoints" / "step_00000006")
    wanted = weights(trained_run)
    config = grader_config(**{"data.workers": workers})
    progress = train_grader(config, run, resume=True)
    assert progress.step == 6
    assert any("at step 3 of 6" in line for line in said)
    found = weights(run)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    clock = ("system/images_per_s", "system/memory_gib")
    rows = [
        [row for row in read_metrics(one.path / "metrics.csv") if row[1] not in clock] for one in (trained_run, run)
    ]
    assert str(rows[0]) == str(rows[1])  # as text: some are NaN


def test_changed_pixels_are_refused_on_resume(
    trained_run: RunFolder, phantom: Path, tmp_path: Path, grader_config: Make
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_run.path, run.path)
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    shutil.copyfile(tmp_path / "data/images/P0001_00.png", tmp_path / "data/images/P0001_01.png")
    config = grader_config(**{"data.manifest": str(tmp_path / "data" / "manifest.csv"), "fit.steps": 7})
    with (run.path / "metrics.csv").open("a") as file:
        file.write("99,loss/total,1\n")  # after the last checkpoint, as a kill may leave it

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(UserError, match="pixels changed since"):
        train_grader(config, run, resume=True)
    assert {name: content for name, content in files().items() if "rejected" not in name} == before


def test_a_run_that_is_done_keeps_its_config(
    trained_run: RunFolder, tmp_path: Path, grader_config: Make, said: list[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_run.path, run.path)
    before = run.config.read_text()
    assert train_grader(grader_config(**{"fit.steps": 2}), run, resume=True).step == 6
    assert any("is complete: step 6 of 2" in line for line in said)
    assert run.config.read_text() == before


def test_a_run_keeps_the_grade_set_that_it_was_trained_on(tmp_path: Path, grader_config: Make) -> None:
    own = tmp_path / "own.yaml"
    grade_set = dataclasses.replace(load_grade_set("cartilage"), name="own", names=("a", "b", "c"))
    own.write_text(grade_set_yaml(grade_set))
    config = grader_config(**{"data.grade_set": str(own), "fit.steps": 2})
    run = create_run(tmp_path / "run", config, kind="grader")
    train_grader(config, run, resume=False)
    own.write_text(grade_set_yaml(dataclasses.replace(grade_set, names=("c", "b", "a"))))
    assert load_run(run.path, checkpoint="last", device="cpu").grade_set == grade_set
    own.unlink()
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    assert main(["train", "--resume", str(run.path), "--fit.steps", "3"]) == 0
    run.path.rename(tmp_path / "moved")
    loaded = load_run(tmp_path / "moved", checkpoint="last", device="cpu")
    assert (loaded.grade_set, loaded.checkpoint.step) == (grade_set, 3)


def test_what_a_resumed_run_changes_is_in_its_config_from_then_on(
    trained_run: RunFolder, tmp_path: Path, grader_config: Make
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_run.path, run.path)
    config = grader_config(**{"fit.steps": 7})
    assert train_grader(config, run, resume=True).step == 7
    _, values = open_run(run.path)
    assert values.pop("kind") == "grader"
    assert config_from_values(GraderConfig, values, where="here") == config
    assert run.private.stat().st_mode & 0o077 == 0


def test_what_another_length_does_to_the_schedules_is_logged(
    tmp_path: Path, grader_config: Make, said: list[str]
) -> None:
    """A cosine to 1 % is at its end after two steps of two, half way after two of four."""
    cosine = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 0}
    config = grader_config(**cosine, **{"fit.steps": 2})
    run = create_run(tmp_path / "run", config, kind="grader")
    train_grader(config, run, resume=False)
    train_grader(grader_config(**cosine, **{"fit.steps": 4}), run, resume=True)
    told = [line for line in said if line.startswith("note: the run was planned with 2 steps and now has 4.")]
    assert len(told) == 1
    assert "at step 2, the rate changes from 1.0% to 50.5% of its base" in told[0]


def test_without_masks_the_attention_loss_is_left_out_and_logged_once(
    phantom: Path, tmp_path: Path, grader_config: Make, said: list[str]
) -> None:
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(tmp_path / "data/manifest.csv", dtype=str, keep_default_na=False)
    table["mask"] = ""
    table.to_csv(tmp_path / "data/manifest.csv", index=False)
    config = grader_config(**{"data.manifest": str(tmp_path / "data/manifest.csv"), "fit.steps": 2})
    run = create_run(tmp_path / "run", config, kind="grader")
    train_grader(config, run, resume=False)
    assert len([line for line in said if "so the attention loss (Eq. 2) is left out" in line]) == 1
    names = {name for _, name, _ in read_metrics(run.path / "metrics.csv")}
    assert "loss/attention" not in names
    assert "val_teacher/tiou" not in names
    assert "loss/attention_consistency" in names


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_half_precision_trains_with_finite_losses(precision: str, tmp_path: Path, grader_config: Make) -> None:
    config = grader_config(**{"fit.steps": 2, "fit.precision": precision, "model.dropout": 0.2})
    run = create_run(tmp_path / "run", config, kind="grader")
    progress = train_grader(config, run, resume=False)
    assert progress.bad_steps == 0
    assert run.checkpoints.latest()[0].state["precision"] in ("bf16", "fp32")


def test_supervised_run_needs_no_unlabeled_image(tmp_path: Path, grader_config: Make) -> None:
    changes = {"loss.probability_consistency": 0, "loss.attention_consistency": 0, "data.unlabeled_per_batch": 0}
    config = grader_config(**changes, **{"data.labeled_fraction": 1.0, "fit.steps": 2})
    run = create_run(tmp_path / "run", config, kind="grader")
    assert train_grader(config, run, resume=False).step == 2
