"""FixMatch as a run: options, resuming, and the commands on its folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from dcmt.cli import main
from dcmt.config import FixMatchConfig, GraderConfig
from dcmt.fixmatch import FixMatch
from dcmt.mean_teacher import MeanTeacher
from dcmt.train import METHODS, build_task, train_grader
from dcmt.trained.loaded import load_run
from knee.data.prepare import load_knee_data
from knee.engine.fit import Fit
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run, open_run
from knee.engine.tracking import read_metrics
from knee.task import Batch

from .fixmatch_options import METHOD, SOFTMATCH, make

Make = Callable[..., GraderConfig]
Nets = Callable[..., nn.Module]
Batches = Callable[..., Batch]


def test_every_method_of_the_config_makes_a_task() -> None:
    assert set(get_args(get_type_hints(GraderConfig)["method"])) == set(METHODS)


def test_options_reach_the_task(grader_config: Make) -> None:
    options = {"unlabeled_weight": 0.7, "threshold": 0.6, "weighting": "softmatch", "momentum": 0.5}
    options |= {"distribution_alignment": "labeled_prior"}
    config = grader_config(
        **METHOD,
        **{f"fixmatch.{name}": value for name, value in options.items()},
        **{"loss.grade": 0.9, "loss.mse_weight": 0.3, "teacher.decay": 0.37, "teacher.buffers": "copy"},
        **{"attention.sharpness": 31.0, "attention.threshold": 0.25},
    )
    data = load_knee_data(config.data)
    task = build_task(config, data, steps=20)
    assert isinstance(task, FixMatch)
    assert task.options == FixMatchConfig(**options)
    assert task.loss == config.loss
    assert (task.decay, task.buffers, task.sharpness, task.threshold) == (0.37, "copy", 31.0, 0.25)
    assert (task.best_metric, task.averages.labels.shape) == ("val_teacher/macro_f1", (3,))
    assert build_task(grader_config(**METHOD, **{"teacher.decay": None}), data, steps=400).decay == pytest.approx(0.95)
    assert isinstance(build_task(grader_config(), data, steps=20), MeanTeacher)


@pytest.fixture(scope="module")
def fixmatch_run(grader_values: Any, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A tiny run with SoftMatch's weights and uniform alignment, six steps; not to be changed."""
    values = {name: dict(part) for name, part in grader_values.items()}
    for name, value in {**METHOD, **SOFTMATCH}.items():
        section, _, option = name.partition(".")
        if option:
            values.setdefault(section, {})[option] = value
        else:
            values[section] = value
    config = config_from_values(GraderConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("runs") / "tiny", config, kind="grader")
    train_grader(config, run, resume=False)
    return run


def state_of(run: RunFolder) -> dict[str, Tensor]:
    found, damaged = run.checkpoints.latest()
    assert found is not None
    assert damaged == []
    names = ("student", "teacher", "averages")
    return {f"{name}.{key}": value for name in names for key, value in found.tensors(name).items()}


def test_run_resumed_from_its_folder_equals_the_undisturbed_one(
    fixmatch_run: RunFolder, tmp_path: Path, grader_config: Make
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(fixmatch_run.path, run.path)
    shutil.rmtree(run.path / "checkpoints" / "step_00000006")
    wanted = state_of(fixmatch_run)
    assert wanted["averages.confidence"].item() != pytest.approx(1 / 3)
    assert train_grader(grader_config(**METHOD, **SOFTMATCH), run, resume=True).step == 6
    found = state_of(run)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    clock = ("system/images_per_s", "system/memory_gib")
    rows = [
        [row for row in read_metrics(one.path / "metrics.csv") if row[1] not in clock] for one in (fixmatch_run, run)
    ]
    assert str(rows[0]) == str(rows[1])


def test_commands_take_its_run_folder_as_any_other(
    fixmatch_run: RunFolder, phantom: Path, tmp_path: Path, grader_config: Make
) -> None:
    shutil.copytree(fixmatch_run.path, tmp_path / "run")
    loaded = load_run(tmp_path / "run", checkpoint="last", device="cpu")
    assert list(loaded.networks) == ["student", "teacher"]
    image = sorted((phantom.parent / "images").glob("*.png"))[0]
    assert main(["evaluate", str(tmp_path / "run"), "--split", "test", "--device", "cpu"]) == 0
    out = ["--out", str(tmp_path / "graded"), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "run"), str(image), *out]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--fit.steps", "7"]) == 0
    assert load_run(tmp_path / "run", checkpoint="last", device="cpu").checkpoint.step == 7


def test_a_run_may_start_from_one_of_another_method(
    fixmatch_run: RunFolder, trained_run: RunFolder, grader_config: Make
) -> None:
    for start, changes in ((trained_run, METHOD), (fixmatch_run, {})):
        config = grader_config(**changes, **{"model.start": str(start.path)})
        task = build_task(config, load_knee_data(config.data), steps=4)
        best = start.checkpoints.best()
        assert best is not None
        wanted, found = best.tensors("teacher"), task.student.state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_config_of_a_run_from_before_there_was_a_method_loads(trained_run: RunFolder) -> None:
    _, values = open_run(trained_run.path)
    values.pop("kind")
    new = config_from_values(GraderConfig, values, where="new")
    assert (values.pop("method"), bool(values.pop("fixmatch"))) == ("mean_teacher", True)
    assert config_from_values(GraderConfig, values, where="old") == new


class WithOneBroken:
    """Small batches by number; the weak views of one hold NaN."""

    per_epoch = 2

    def __init__(self, make_batch: Batches, broken: int) -> None:
        self.make_batch, self.broken = make_batch, broken

    def from_batch(self, batch: int) -> Iterator[Batch]:
        while True:
            found = self.make_batch(4, 3, seed=batch)
            if batch == self.broken:
                found.teacher.fill_(float("nan"))
            yield found
            batch += 1


def test_step_that_is_not_finite_leaves_no_trace_in_the_averages(
    make_fit: Callable[..., Fit], small_grader: Nets, small_batch: Batches
) -> None:
    task = make(small_grader(), weighting="softmatch", distribution_alignment="labeled_prior")
    fit = dataclasses.replace(make_fit(), task=task, batches=WithOneBroken(small_batch, 2), steps=5)
    batches = fit.batches.from_batch(0)
    states: list[dict[str, Tensor]] = []
    for _ in range(5):
        fit.step(batches)
        states.append({f"{n}.{k}": v.clone() for n, one in task.networks.items() for k, v in one.state_dict().items()})
    assert fit.progress.bad_steps == 1
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    for name in ("predictions", "labels", "confidence", "variance"):
        assert torch.isfinite(states[4][f"averages.{name}"]).all()
        assert not torch.equal(states[2][f"averages.{name}"], states[4][f"averages.{name}"])


def test_run_in_which_no_pseudo_label_passes_is_warned_of(
    make_fit: Callable[..., Fit], small_grader: Nets, small_batch: Batches, said: list[str]
) -> None:
    fit = dataclasses.replace(make_fit(), task=make(small_grader()), batches=WithOneBroken(small_batch, -1), steps=4)
    fit.run()
    warnings = [line for line in said if "loss/pseudo_label has a weight above 0 but was exactly 0" in line]
    assert len(warnings) == 1
