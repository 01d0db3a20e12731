"""The joint task: its terms, weights of 0, missing modalities, and the privileged teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from image_text.batches import PairBatch
from image_text.config import ImageTextConfig
from image_text.joint.model import JointModel
from image_text.joint.task import Joint, grade_loss, seen_modalities
from tests.image_text.two_processes import assert_two_equal_one

Make = Callable[..., ImageTextConfig]
OFF = {f"joint.{name}": 0.0 for name in ("contrast", "grade", "patches", "words", "cells", "privileged")}


def task_of(config: ImageTextConfig, model: JointModel) -> Joint:
    return Joint(
        model,
        joint=config.joint,
        contrast=config.contrast,
        decay=0.9,
        ramp_start=2,
        ramp_steps=2,
        best_metric="val_teacher/kappa",
    )


def test_all_terms(joint_config: Make, model: JointModel, batch: PairBatch) -> None:
    torch.manual_seed(0)
    config = joint_config(**{"joint.privileged": 2.0, "joint.hidden": 0.5})
    losses = task_of(config, model.train()).losses(batch, 4)
    assert set(losses.terms) == {
        *("image_report", "image_table", "report_table", "grade", "grade_fused", "patches", "words", "cells"),
        "privileged",
    }
    assert float(losses.monitors["contrast/image_report_share"]) == pytest.approx(4 / 6)
    assert float(losses.monitors["contrast/report_table_share"]) == pytest.approx(3 / 6)
    losses.total.backward()
    without = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    }
    assert without == set()


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("contrast", {"image_report", "image_table", "report_table"}),
        ("grade", {"grade", "grade_fused"}),
        ("patches", {"patches"}),
        ("words", {"words"}),
        ("cells", {"cells"}),
    ],
)
def test_a_term_of_weight_0_is_not_computed(
    joint_config: Make, model: JointModel, batch: PairBatch, name: str, terms: set[str]
) -> None:
    torch.manual_seed(0)
    config = joint_config(**{**OFF, f"joint.{name}": 2.0})
    losses = task_of(config, model).losses(batch, 0)
    assert set(losses.terms) == terms
    torch.testing.assert_close(losses.total, 2 * torch.stack(list(losses.terms.values())).sum())


def test_no_pair_at_all_in_a_batch(joint_config: Make, model: JointModel, batch: PairBatch) -> None:
    alone = batch._replace(
        tokens=torch.zeros_like(batch.tokens),
        texts=torch.full((6,), -1),
        numbers=torch.full((6, 2), float("nan")),
        categories=torch.full((6, 2), -1),
        tables=torch.full((6,), -1),
        grades=torch.full((6,), -1),
    )
    losses = task_of(joint_config(), model).losses(alone, 0)
    assert all(float(losses.terms[name].detach()) == 0 for name in ("image_report", "grade", "words", "cells"))
    losses.total.backward()
    assert losses.total.isfinite()


def test_privileged_consistency_is_of_ungraded_images_and_waits_for_the_ramp(
    joint_config: Make, model: JointModel, batch: PairBatch
) -> None:
    task = task_of(joint_config(**{**OFF, "joint.grade": 1.0, "joint.privileged": 1.0}), model)
    assert "privileged" not in task.losses(batch, 1).terms
    assert float(task.losses(batch, 4).terms["privileged"].detach()) > 0
    graded = batch._replace(grades=torch.zeros(6, dtype=torch.int64))
    assert float(task.losses(graded, 4).terms["privileged"].detach()) == 0
    before = task.losses(batch, 4).terms["privileged"]
    other = batch._replace(tokens=torch.where(batch.tokens > 1, 11, batch.tokens))
    assert float(task.losses(other, 4).terms["privileged"].detach()) != float(before.detach())
    assert float(task.losses(other, 4).terms["grade"].detach()) == float(task.losses(batch, 4).terms["grade"].detach())


def test_something_is_always_seen(batch: PairBatch) -> None:
    torch.manual_seed(0)
    many: Any = [seen_modalities(batch, 0.9) for _ in range(50)]
    shown = torch.stack(many)
    assert shown.any(2).all()
    assert not shown[:, 1, 1].any()
    assert not shown[:, 2, 2].any()
    assert seen_modalities(batch, 0.0)[0].all()


def test_grades_without_any() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    assert float(grade_loss(logits, torch.full((3,), -1)).detach()) == 0
    one = grade_loss(logits, torch.tensor([2, -1, -1]))
    torch.testing.assert_close(one, -logits[0].log_softmax(0)[2])


def test_two_processes_have_the_losses_and_the_gradients_of_one(
    joint_config: Make, model: JointModel, batch: PairBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same parts hidden in each row; reports, tables and grades are shared unequally."""

    rand = torch.rand

    def same_in_each_row(*shape: Any, device: Any) -> torch.Tensor:
        size = shape[0] if isinstance(shape[0], torch.Size) else shape
        return rand(size[1:], generator=torch.Generator().manual_seed(1)).expand(size)

    monkeypatch.setattr(torch, "rand", same_in_each_row)
    task = task_of(joint_config(**{"joint.privileged": 2.0, "joint.hidden": 0.5, "joint.dropout": 0.0}), model)
    task.teacher.eval()
    assert_two_equal_one(task, batch, tmp_path, step=4)
