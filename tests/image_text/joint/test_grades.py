"""Further grade sets: columns, bad grades, and that they count only where the image's own grade does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dcmt.cli import main
from image_text.config import ImageTextConfig
from image_text.joint import build
from image_text.joint.build import further_by_input, probabilities, table_cells, table_grades
from image_text.joint.grades import grade_columns, read_further_grades
from image_text.joint.model import JointModel
from image_text.joint.task import grade_loss
from image_text.train import KIND, build_towers, load_reports, train_image_text
from knee.data.prepare import load_knee_data
from knee.engine.run import create_run
from knee.engine.tracking import read_metrics
from knee.errors import Faults, UserError
from knee.metrics import grading_metrics

Make = Callable[..., ImageTextConfig]


def test_columns_and_bad_grades() -> None:
    table = pd.DataFrame({"defect": ["0", "", "2.0"], "odd": ["1", "9", "x"], "line": [2, 3, 4]})
    found = read_further_grades(table, "defect=cartilage", where="m.csv")
    assert found.grades.tolist() == [[0], [-1], [2]]
    assert read_further_grades(table, "", where="m.csv").grades.shape == (3, 0)
    with pytest.raises(UserError, match=r"has no column 'jsn'; join it with dcmt manifest … --table jsn"):
        read_further_grades(table, "jsn=cartilage", where="m.csv")
    with pytest.raises(Faults) as error:
        read_further_grades(table, "odd=cartilage", where="m.csv")
    assert "line 3: column 'odd': grade '9' is not 0–2" in str(error.value)
    assert len(error.value.faults) == 2


@pytest.mark.parametrize("text", ["defect", "=kl", "defect=", "a=kl,a=cartilage", "grade=kl", "a=none-such"])
def test_what_is_no_grade_set(text: str) -> None:
    with pytest.raises(UserError):
        grade_columns(text)


def test_each_set_has_heads_that_see_the_image_or_all(joint_config: Make) -> None:
    torch.manual_seed(0)
    model = build_towers(joint_config(**{"joint.further_grades": "defect=cartilage,b=kl"}), grades=5, fresh=True)
    assert isinstance(model, JointModel)
    model.eval()
    images = torch.rand(2, 1, 48, 48)
    assert [one.shape[1] for one in model.image_grades(model.image.pooled(images))] == [5, 3, 5]
    torch.testing.assert_close(model.image_grades(model.image.pooled(images))[0], model.image(images).logits)
    logits = torch.randn(4, 3, requires_grad=True)
    grade_loss(logits, torch.tensor([-1, 2, -1, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).gt(0).tolist() == [False, True, False, True]


def test_a_run_with_a_further_grade_set(joint_config: Make, films: Path, tmp_path: Path) -> None:
    table = pd.read_csv(films, dtype=str, keep_default_na=False)
    table["defect"] = [str(number % 3) for number in range(len(table))]
    manifest = films.with_name("further.csv")
    table.to_csv(manifest, index=False)
    changes = {"data.manifest": str(manifest), "joint.further_grades": "defect=cartilage", "data.labeled_fraction": 0.5}
    config = joint_config(**changes, **{"fit.steps": 2})
    run = create_run(tmp_path / "run", config, kind=KIND)
    train_image_text(config, run, resume=False)
    names = {name for _, name, _ in read_metrics(run.path / "metrics.csv")}
    assert {"loss/grade_further", "loss/grade_further_fused", "val_teacher/kappa"} <= names
    assert {"val_teacher/defect_image_kappa", "val_teacher/defect_fused_kappa"} <= names
    assert main(["retrieve", str(run.path), "--device", "cpu", "--queries", "1"]) == 0
    found = json.loads((run.path / "retrieval_test.json").read_text())["grades"]["further"]
    assert set(found["defect"]) == {"image", "fused"}
    assert np.isfinite(found["defect"]["image"]["kappa"])


def test_sets_are_graded_on_their_own_cases_in_one_pass(
    joint_config: Make, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(films, dtype=str, keep_default_na=False)
    table["defect"] = [str(number % 3) for number in range(len(table))]
    table["other"] = ["" if number % 2 else str(number % 5) for number in range(len(table))]
    table["same"] = "1"
    manifest = films.with_name("sets.csv")
    table.to_csv(manifest, index=False)
    sets = "defect=cartilage,same=kl,other=kl"
    config = joint_config(**{"data.manifest": str(manifest), "joint.further_grades": sets})
    data, cpu = load_knee_data(config.data, salt_folder=None), torch.device("cpu")
    torch.manual_seed(0)
    model = build_towers(config, grades=5, fresh=True)
    assert isinstance(model, JointModel)
    inputs = (model, data, load_reports(config, data), table_cells(config, data))
    further, rows = table_grades(config, data), data.split.rows("train")
    expected = {}
    for place, column in ((0, "defect"), (2, "other")):
        graded = rows[further.grades[rows, place] >= 0]
        fused = probabilities(*inputs, graded, fused=True, device=cpu, precision="fp32")[1 + place]
        expected[column] = grading_metrics(fused, further.grades[graded, place], further.sets[place])["kappa"]
    passes: list[int] = []

    def counted(*arguments: object, **options: object) -> object:
        passes.append(1)
        return probabilities(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "probabilities", counted)
    found = further_by_input(*inputs, further, rows, device=cpu, precision="fp32")
    assert {column: both["fused"]["kappa"] for column, both in found.items()} == pytest.approx(expected)
    assert len(passes) == 2
