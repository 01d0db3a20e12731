"""A training run of any kind: data, task and run folder brought together, from the start or from the last checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from knee.data.prepare import KneeData, TrainingBatches
from knee.data.view_config import ViewConfig
from knee.engine.checkpoint import Checkpoint
from knee.engine.config import OptimizerConfig, ReportConfig
from knee.engine.fit import Fit, Progress
from knee.engine.launch import TrainConfig, count_steps, latest_checkpoint, open_tracker, place, settle_precision
from knee.engine.run import RunFolder, file_hash, forget_earlier, keep_config, open_run
from knee.engine.schedules import learning_rate_factor
from knee.engine.tracking import Tracker
from knee.engine.versions import versions
from knee.grades import grade_set_yaml
from knee.io.files import moved_into_place, typed
from knee.task import Task

Say = Callable[[str], None]
Rows = NDArray[np.int64]


class FullConfig(TrainConfig, Protocol):
    """What the configs of graders and segmenters have in common."""

    @property
    def views(self) -> ViewConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def report(self) -> ReportConfig: ...


@dataclass(frozen=True)
class Streams:
    """What a run trains on: rows whose grade or mask is used, rows without either, and how far masks are dilated."""

    labeled: Rows
    unlabeled: Rows
    dilation: float


class Kind(Protocol):
    """What differs between kinds of run."""

    streams: Streams
    command: str
    """The command that resumes it, up to the run folder."""
    next: str
    """The command that usually follows, ``{run}`` in place of the run folder."""

    def task(self, *, steps: int, device: torch.device, checkpoint: Checkpoint | None) -> Task:
        """Networks and losses; with a checkpoint no weights need be fetched, it fills them."""
        ...

    def ready(self, task: Task, *, precision: str, device: torch.device, tracker: Tracker) -> None:
        """Called when device and precision are settled: the place to attach validation."""
        ...

    def state(self, checkpoint: Checkpoint | None) -> Mapping[str, Any]:
        """More to write into every checkpoint's state.json."""
        ...


def train(
    config: FullConfig, run: RunFolder, data: KneeData, kind: Kind, *, device: torch.device, say: Say, resume: bool
) -> Progress:
    """Train in a run folder that the caller has locked."""
    batches = TrainingBatches(
        data,
        config.data,
        config.views,
        rows=kind.streams.labeled,
        unlabeled=kind.streams.unlabeled,
        dilation=kind.streams.dilation,
        seed=config.fit.seed,
        device=device,
        channels_last=config.fit.channels_last,
    )
    steps = count_steps(config.fit.steps, config.fit.epochs, config.fit.accumulation, batches.per_epoch)
    checkpoint = latest_checkpoint(run, say=say) if resume else None
    if checkpoint is None:
        record_data(run, data)
    # Before anything is recorded: a run whose weights or backbone are not there has not begun, and leaves its name free.
    task = kind.task(steps=steps, device=device, checkpoint=checkpoint)
    with open_tracker(run, checkpoint, tensorboard=config.report.tensorboard) as tracker:
        place(task, device, channels_last=config.fit.channels_last)
        if checkpoint is not None:
            precision = checkpoint.precision
        else:
            precision = settle_precision(config.fit.precision, task, batches, device, say=say)
        kind.ready(task, precision=precision, device=device, tracker=tracker)
        if config.fit.compile:
            for network in task.networks.values():
                network.compile()
        fit = Fit(
            task=task,
            batches=batches,
            config=config.fit,
            optimizer_config=config.optimizer,
            device=device,
            precision=precision,
            tracker=tracker,
            checkpoints=run.checkpoints,
            steps=steps,
            say=say,
            state={**run_state(data, best_metric=task.best_metric), **kind.state(checkpoint)},
            resume_command=f"{kind.command} --resume {typed(run.path)}",
        )
        done = checkpoint is not None and checkpoint.step >= steps
        if checkpoint is not None:
            fit.restore(checkpoint)
            longer = "--fit.epochs above the config's" if config.fit.epochs else f"--fit.steps above {checkpoint.step}"
            say(
                f"{run.path} is done: step {checkpoint.step} of {steps}; go on with {longer}"
                if done
                else f"resuming {run.path} at step {checkpoint.step} of {steps}"
            )
        if (
            checkpoint is not None
            and not done
            and (note := _note_of_length(run, config, batches, checkpoint.step, steps))
        ):
            say(note)
        if resume and not done:
            keep_config(run, config)  # not before: a resuming that is refused, or has nothing to do, changes nothing
        forget_earlier(run)
        progress = fit.run()
        if not fit.was_stopped:
            say(f"run folder: {run.path}; next: {kind.next.format(run=typed(run.path))}")
        return progress


def _note_of_length(run: RunFolder, config: FullConfig, batches: TrainingBatches, step: int, steps: int) -> str | None:
    """What to know of a run that goes on with another length than it had: its schedules are functions of the length."""
    fit = open_run(run.path)[1]["fit"]
    before = count_steps(fit["steps"], fit["epochs"], config.fit.accumulation, batches.per_epoch)
    if before == steps:
        return None
    optimizer = config.optimizer
    rates = [
        learning_rate_factor(step, length, schedule=optimizer.schedule, warmup=optimizer.warmup_steps)
        for length in (before, steps)
    ]
    return (
        f"note: the run was to have {before} steps and now has {steps}. Learning rate, ramp and the teacher's default decay "
        f"follow the length: here, at step {step}, the rate goes from {rates[0]:.1%} to {rates[1]:.1%} of its base. For the "
        f"numbers of a run of {steps} steps, train one from the start"
    )


def record_data(run: RunFolder, data: KneeData) -> None:
    """Keep what the run is about: its grades, and in ``local/`` the split and the key from case names to files."""
    with moved_into_place(run.grade_set) as scratch:
        scratch.write_text(grade_set_yaml(data.grade_set), encoding="utf-8")
    if data.cache.template is not None:
        np.save(run.template_path, data.cache.template)
    shutil.copyfile(data.split.path, run.local / "split.csv")
    key = data.manifest.table[["image", "patient"]].copy()
    key.insert(0, "case", data.cases(data.manifest.table.index.to_numpy()))
    key.to_csv(run.local / "cases.csv", index=False)
    for path in run.local.iterdir():
        path.chmod(0o600)


def run_state(data: KneeData, *, best_metric: str) -> dict[str, Any]:
    """What every checkpoint says of its origin."""
    return {
        "versions": versions(),
        "manifest_sha256": file_hash(data.manifest.path),
        "split_sha256": file_hash(data.split.path),
        "pixels_sha256": data.pixels_sha256(),
        "labeled_images": len(data.labeled),
        "unlabeled_images": len(data.unlabeled),
        "grade_set": data.grade_set.name,
        "best_metric": best_metric,
    }
