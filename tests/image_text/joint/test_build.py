"""Joint runs: trained, validated by both kinds of grade, resumed bit for bit, and grading like a grader's run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcmt.cli import main
from image_text.config import ImageTextConfig
from image_text.train import KIND, train_image_text
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import read_metrics
from knee.errors import UserError

Make = Callable[..., ImageTextConfig]


@pytest.fixture(scope="module")
def joint_run(joint_config: Make, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A tiny joint run of four steps on half of the grades."""
    config = joint_config(**{"data.labeled_fraction": 0.5, "joint.privileged": 1.0})
    run = create_run(tmp_path_factory.mktemp("joint") / "tiny", config, kind=KIND)
    train_image_text(config, run, resume=False)
    return run


def test_both_grades_and_retrieval_are_validated(joint_run: RunFolder) -> None:
    names = {name for _, name, _ in read_metrics(joint_run.path / "metrics.csv")}
    assert {"val_teacher/kappa", "val_teacher/fused_kappa", "val_teacher/mrr", "loss/image_report"} <= names
    best = joint_run.checkpoints.best()
    assert best is not None
    assert best.state["best_metric"] == "val_teacher/kappa"


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    joint_run: RunFolder, joint_config: Make, tmp_path: Path
) -> None:
    changes = {"data.labeled_fraction": 0.5, "joint.privileged": 1.0}
    run = create_run(tmp_path / "half", joint_config(**changes), kind=KIND)
    # Stopped by its length; ramp and decay of the first steps do not depend on it here.
    train_image_text(joint_config(**changes, **{"fit.steps": 2}), run, resume=False)
    train_image_text(joint_config(**changes), run, resume=True)
    for network in ("student", "teacher", "optimizer"):
        one, two = (
            load_file(path / "checkpoints" / "step_00000004" / f"{network}.safetensors")
            for path in (joint_run.path, run.path)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), network


def test_retrieval_of_a_joint_run_shows_the_fused_grade_apart(joint_run: RunFolder, said: list[str]) -> None:
    assert main(["retrieve", str(joint_run.path), "--device", "cpu", "--queries", "1"]) == 0
    found = json.loads((joint_run.path / "retrieval_test.json").read_text())["grades"]
    assert found["modalities"] == {"report": 1.0, "table": 1.0}
    assert set(found["image"]) == set(found["fused"]) == {"kappa", "macro_f1", "accuracy", "auc"}
    assert any("which predict does not use" in line for line in said)


def test_grades_are_no_columns(joint_config: Make, tmp_path: Path) -> None:
    config = joint_config(**{"joint.columns": "age,grade"})
    run = create_run(tmp_path / "run", config, kind=KIND)
    with pytest.raises(UserError, match=r"joint\.columns: 'grade' is a grade"):
        train_image_text(config, run, resume=False)


def test_options_of_joint_need_its_method(make_config: Make) -> None:
    with pytest.raises(UserError, match="method is 'lumbarclip'; it must be beyond_clip"):
        make_config(**{"joint.layers": 3})
    assert torch.is_grad_enabled()


def test_a_joint_run_grades_from_the_image_alone(
    joint_run: RunFolder, pair_run: RunFolder, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(joint_run.path), "--device", "cpu", "--no-flip"]) == 0
    assert (joint_run.path / "metrics_test.json").is_file()
    image = str(sorted((films.parent / "images").iterdir())[0])
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--no-overlays", "--grade-anyway"]
    assert main(["predict", str(joint_run.path), image, *out]) == 0
    assert (tmp_path / "out" / "predictions.csv").is_file()
    assert main(["predict", str(pair_run.path), image, *out, "--force"]) == 2
    assert "has no grader; train one from it with --model.start" in capsys.readouterr().err
