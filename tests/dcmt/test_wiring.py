"""What a config says reaches the formula it is about, and what is measured is what the design says is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmt.config import GraderConfig, LossConfig
from dcmt.loaded import LoadedRun, grade_rows, load_data, load_run
from dcmt.mean_teacher import MeanTeacher
from dcmt.train import build_task, training_batches
from dcmt.validation import GraderValidation
from knee.attention import attention_mask
from knee.data.prepare import load_knee_data
from knee.engine.config import FitConfig, OptimizerConfig
from knee.engine.fit import Fit, make_optimizer
from knee.engine.run import RunFolder
from knee.engine.tracking import read_metrics
from knee.engine.training import settle_precision
from knee.images.masks import dilate
from knee.metrics import exceeded_share
from knee.task import Grading
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


def test_images_are_normalised_by_the_training_images_alone(grader_config: Make) -> None:
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


class Brightness(nn.Module):
    """Looks where an image is bright, on a grid of a quarter of its size; always of the first grade."""

    def forward(self, images: Tensor) -> Grading:
        maps = nn.functional.avg_pool2d(images, 4).repeat(1, 3, 1, 1)
        return Grading(torch.tensor([[3.0, 0.0, 0.0]]).repeat(len(images), 1), maps)


def plain_iou(loaded: LoadedRun, data: Any, rows: Any, *, dilation: float) -> np.ndarray:
    """Of {f > 0.5} and the mask, image by image, from the formula's own pieces."""
    attention, found = loaded.config.attention, []
    for row in rows:
        image = torch.from_numpy(np.array(data.cache.images[row]))[None, None].float() / 255
        maps = Brightness()(image).class_maps
        f = attention_mask(
            maps,
            torch.zeros(1, dtype=torch.int64),
            (image.shape[2], image.shape[3]),
            sharpness=attention.sharpness,
            threshold=attention.threshold,
        )[0].numpy()
        mask = dilate(np.array(data.cache.masks[row]), dilation) > 0
        found.append(((f > 0.5) & mask).sum() / ((f > 0.5) | mask).sum() if mask.any() else np.nan)
    return np.array(found)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_attention_is_compared_with_dilated_masks_at_the_configs_threshold(
    threshold: float, trained_run: RunFolder
) -> None:
    loaded = load_run(trained_run.path, checkpoint="best", device="cpu")
    attention = dataclasses.replace(loaded.config.attention, threshold=threshold)
    loaded = dataclasses.replace(
        loaded, config=dataclasses.replace(loaded.config, attention=attention), networks={"teacher": Brightness()}
    )
    data = load_data(loaded)
    dilation = loaded.config.data.mask_dilation
    for split in ("val", "test"):
        rows = data.rows(split)
        wanted, undilated = (plain_iou(loaded, data, rows, dilation=size) for size in (dilation, 0.0))
        assert np.abs(wanted - undilated).max() > 0.02
        np.testing.assert_allclose(grade_rows(loaded, data, rows)["teacher"].iou, wanted, atol=1e-6)
        if split == "val":
            tracker: Any = SimpleNamespace(shows=False)
            validation = GraderValidation(
                data, device=CPU, precision="fp32", attention=attention, tracker=tracker, cases=0
            )
            tiou = [np.nanmean(exceeded_share(iou)) for iou in (wanted, undilated)]
            assert tiou[0] != pytest.approx(tiou[1], abs=1e-3)
            assert validation({"teacher": Brightness()}, 0)["val_teacher/tiou"] == pytest.approx(tiou[0])


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


def test_trying_precisions_leaves_no_trace(
    small_grader: Callable[..., nn.Module], seeded_batches: Callable[[], Any]
) -> None:
    task = MeanTeacher(small_grader(dropout=0.5), loss=LossConfig(), decay=0.9, ramp_steps=1)
    for network in task.networks.values():
        network.train()

    def state() -> list[Tensor]:
        return [value.clone() for network in task.networks.values() for value in network.state_dict().values()]

    before, random = state(), torch.get_rng_state()
    assert settle_precision(FitConfig(precision="auto"), task, seeded_batches(), CPU) in ("bf16", "fp32")
    assert all(torch.equal(one, other) for one, other in zip(before, state(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_the_scale_of_half_precision_goes_on_where_it_was(make_fit: Callable[..., Fit]) -> None:
    """Steps whose gradient overflows halve the scale; a resumed run must not start over at 65,536."""
    fit = make_fit(steps=12, precision="fp16", spoiled=frozenset({0, 1}), validate_every=12)
    fit.run()
    scale = fit.scaler.state_dict()
    assert fit.progress.bad_steps >= 2
    assert scale["scale"] == 65536 / 2**fit.progress.bad_steps
    assert scale["_growth_tracker"] > 0
    assert make_fit(steps=14, precision="fp16", resume=True).scaler.state_dict() == scale
