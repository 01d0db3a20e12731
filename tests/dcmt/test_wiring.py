"""What a config says reaches the formula it is about, and what is measured is what the design says is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmt.config import GraderConfig, LossConfig
from dcmt.mean_teacher import MeanTeacher
from dcmt.train import build_task, training_batches
from knee.data.prepare import load_knee_data
from knee.engine.config import OptimizerConfig
from knee.engine.fit import Fit, make_optimizer
from knee.engine.tracking import read_metrics
from segmentation.config import SegmenterConfig
from segmentation.train import overlap
from segmentation.train import training_batches as segmenter_batches

Make = Callable[..., GraderConfig]
CPU = torch.device("cpu")


def test_options_of_loss_teacher_and_attention_reach_the_task(grader_config: Make) -> None:
    weights = {"grade": 0.9, "attention": 0.8, "mse_weight": 0.7, "inside_weight": 0.06, "probability_consistency": 5.0}
    weights |= {"teacher_temperature": 0.4, "attention_consistency": 3.0, "flip_consistency": 2.0}
    options = {f"loss.{name}": value for name, value in weights.items()}
    options |= {"loss.ramp": 0.3, "loss.ramp_start": 0.45, "loss.teacher_flip": True, "loss.symmetry": True}
    options |= {
        "teacher.decay": 0.37,
        "teacher.buffers": "copy",
        "attention.sharpness": 31.0,
        "attention.threshold": 0.25,
    }
    config = grader_config(**options)
    task = build_task(config, load_knee_data(config.data), steps=20)
    assert task.loss == LossConfig(**weights, teacher_flip=True, symmetry=True, ramp=0.3, ramp_start=0.45)
    assert (task.ramp_steps, task.ramp_start, task.decay, task.buffers) == (6, 9, 0.37, "copy")
    assert (task.sharpness, task.threshold) == (31.0, 0.25)
    assert task.best_metric == "val_teacher/macro_f1"


def test_the_default_decay_is_that_of_the_runs_length(grader_config: Make) -> None:
    config = grader_config(**{"teacher.decay": None})
    data = load_knee_data(config.data)
    assert build_task(config, data, steps=400).decay == pytest.approx(0.95)


def test_images_are_normalised_by_only_the_training_images(grader_config: Make) -> None:
    config = grader_config(**{"model.normalise": "fixed"})
    data = load_knee_data(config.data)
    student: Any = build_task(config, data, steps=4).student
    found = float(student.mean), float(student.std)
    of = {split: np.asarray(data.cache.images[data.split.rows(split)]) / 255 for split in ("train", "val", "test")}
    assert found == pytest.approx((of["train"].mean(), of["train"].std()), abs=1e-4)
    for split in ("val", "test"):
        assert abs(of[split].mean() - of["train"].mean()) > 1e-3, (
            "the phantom's splits must differ for this to say anything"
        )


def test_masks_are_dilated_for_the_attention_and_not_for_the_segmenter(
    grader_config: Make, segmenter_config: Callable[..., SegmenterConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dcmt.train", "segmentation.train"):
        monkeypatch.setattr(f"{module}.TrainingBatches", lambda *_, dilation, **__: dilation)
    config = grader_config(**{"data.mask_dilation": 11.0})
    assert training_batches(config, load_knee_data(config.data), device=CPU) == 11.0
    segmenter = segmenter_config(**{"data.mask_dilation": 11.0})
    data = load_knee_data(segmenter.data, graded=False)
    assert segmenter_batches(segmenter, data, device=CPU) == 0.0


def test_dice_is_of_undilated_drawn_masks(segmenter_config: Callable[..., SegmenterConfig]) -> None:
    class Bright(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images[:, 0] - 0.5) * 100

    data = load_knee_data(segmenter_config().data, graded=False)
    rows = np.flatnonzero(data.cache.has_mask)
    network: Any = Bright()
    found = overlap(network, data, rows, device=CPU)
    dice, iou = [], []
    for row in rows:
        bright, drawn = data.cache.images[row] > 127.5, data.cache.masks[row] > 0
        both = (bright & drawn).sum()
        dice.append(2 * both / (bright.sum() + drawn.sum()))
        iou.append(both / (bright | drawn).sum())
    assert found == pytest.approx({"dice": np.mean(dice), "iou": np.mean(iou)})


def test_the_learning_rate_of_every_step_is_the_schedules(make_fit: Callable[..., Fit], tmp_path: Path) -> None:
    cosine = OptimizerConfig(learning_rate=0.5, schedule="cosine", warmup_steps=0)
    make_fit(steps=4, log_every=1, optimizer=cosine).run()
    rates = [value for _, name, value in read_metrics(tmp_path / "run" / "metrics.csv") if name == "schedule/lr"]
    shares = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    assert rates == pytest.approx(0.5 * (0.01 + 0.99 * shares), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_the_optimiser_is_the_one_asked_for(kind: type, small_grader: Callable[..., nn.Module]) -> None:
    task = MeanTeacher(small_grader(), loss=LossConfig(), decay=0.9, ramp_steps=1)
    name: Any = kind.__name__.lower()
    optimizer = make_optimizer(task, OptimizerConfig(name=name, learning_rate=0.3, weight_decay=0.07), CPU)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.07)
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in task.student.parameters()
    }
    if kind is torch.optim.SGD:
        assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_the_scale_of_half_precision_goes_on_where_it_was(make_fit: Callable[..., Fit]) -> None:
    """Steps whose gradient overflows halve the scale; a resumed run must not start over at 65,536."""
    fit = make_fit(steps=12, precision="fp16", spoiled=frozenset({0, 1}), validate_every=12)
    fit.run()
    scale = fit.scaler.state_dict()
    assert fit.progress.bad_steps >= 2
    assert scale["scale"] == 65536 / 2**fit.progress.bad_steps
    assert scale["_growth_tracker"] > 0
    assert make_fit(steps=14, precision="fp16", resume=True).scaler.state_dict() == scale
