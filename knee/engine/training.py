"""A training run of any task: choose device and precision, then start or resume the loop in a run folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from knee.data.config import DataConfig
from knee.data.prepare import KneeData
from knee.data.view_config import ViewConfig
from knee.engine.checkpoint import Checkpoint
from knee.engine.config import FitConfig, OptimizerConfig, ReportConfig
from knee.engine.device import autocast, choose_device, choose_precision, flush_denormals
from knee.engine.fit import Batches, Fit
from knee.engine.guards import BufferKeeper, refuse_batch_of_one
from knee.engine.options import config_from_values
from knee.engine.record import run_state
from knee.engine.run import RunFolder, keep_config, open_run
from knee.engine.schedules import learning_rate_factor
from knee.engine.state import Progress
from knee.engine.tracking import Silent, Tracker, read_metrics
from knee.errors import UserError
from knee.io.files import typed
from knee.nn import processes
from knee.nn.batch_norm import FEW_IMAGES, synchronise
from knee.task import Task, Validation

log = logging.getLogger(__name__)


class RunConfig(Protocol):
    """The common part of the configs of graders and segmenters."""

    @property
    def name(self) -> str:
        """Name of the run; empty: a default name."""
        ...

    @property
    def runs(self) -> str:
        """Folder that contains the run folders."""
        ...

    @property
    def data(self) -> DataConfig:
        """The images, and which of them are labeled."""
        ...

    @property
    def views(self) -> ViewConfig:
        """The augmentation."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer and its schedule."""
        ...

    @property
    def fit(self) -> FitConfig:
        """The training loop."""
        ...

    @property
    def report(self) -> ReportConfig:
        """What the run records."""
        ...


def start(config: FitConfig) -> torch.device:
    """Set seeds and threads (only here), and return the device."""
    flush_denormals()  # before threads are started, so that they inherit it
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by torch before 2.11
    torch.use_deterministic_algorithms(config.deterministic)
    return choose_device(config.device)


def count_steps(config: FitConfig, batches_per_epoch: int) -> int:
    """Optimizer steps of a run: ``epochs`` passes if given, else ``steps``.

    >>> count_steps(FitConfig(steps=100), 50), count_steps(FitConfig(epochs=3, accumulation=2), 50)
    (100, 75)
    """
    return max(1, config.epochs * batches_per_epoch // config.accumulation) if config.epochs else config.steps


def fit(
    task: Task,
    batches: Batches,
    run: RunFolder,
    config: RunConfig,
    data: KneeData,
    *,
    device: torch.device,
    steps: int,
    checkpoint: Checkpoint | None,
    command: str,
    next_command: str,
    state: Mapping[str, Any] | None = None,
    validation: Callable[..., Validation] | None = None,
) -> Progress:
    """Train a task in a run folder that the caller has locked, from the start or from a checkpoint.

    ``validation`` is called with ``precision`` and ``tracker`` once they are known. ``command`` resumes the run and
    ``next_command`` is the usual next one; ``{run}`` is replaced by the run folder. ``state`` is stored in every checkpoint.
    """
    with open_tracker(run, checkpoint, tensorboard=config.report.tensorboard) as tracker:
        place(task.networks, device, channels_last=config.fit.channels_last)
        if config.data.labeled_per_batch + config.data.unlabeled_per_batch == 1:
            refuse_batch_of_one(task.networks.values(), config.data.image_size, device)
        if _synchronises(config):
            synchronise(task.networks.values())
        precision = checkpoint.precision if checkpoint else settle_precision(config.fit, task, batches, device)
        if validation is not None:
            task.validation = validation(precision=precision, tracker=tracker)
        if config.fit.compile:
            for network in task.networks.values():
                network.compile()
        processes.refuse_different(origin := {**run_state(data, best_metric=task.best_metric), **(state or {})})
        loop = Fit(
            task=task,
            batches=batches,
            config=config.fit,
            optimizer_config=config.optimizer,
            device=device,
            precision=precision,
            tracker=tracker,
            checkpoints=run.checkpoints,
            steps=steps,
            state=origin,
            resume_command=command.format(run=typed(run.path)),
        )
        if checkpoint is not None:
            _resume(loop, checkpoint, run, config)
        progress = loop.run()
        if not loop.was_stopped:
            log.info(f"run folder: {run.path}; next: {next_command.format(run=typed(run.path))}")
        return progress


def _synchronises(config: RunConfig) -> bool:
    """Whether batch normalisation uses the images of all processes."""
    data, several = config.data, processes.count()
    images = (data.labeled_per_batch + data.unlabeled_per_batch) * data.slices_per_knee // several
    chosen = config.fit.sync_batch_norm
    return several > 1 and (chosen == "always" or (chosen == "auto" and images < FEW_IMAGES))


def _resume(loop: Fit, checkpoint: Checkpoint, run: RunFolder, config: RunConfig) -> None:
    """Restore the loop and report the effect of resuming; a changed config is stored only after all checks have passed."""
    loop.restore(checkpoint)
    step, steps = checkpoint.step, loop.steps
    if step >= steps:
        longer = "--fit.epochs above the config's" if config.fit.epochs else f"--fit.steps above {step}"
        log.info(f"{run.path} is complete: step {step} of {steps}; to train longer, add {longer}")
        return
    log.info(f"resuming {run.path} at step {step} of {steps}")
    values = open_run(run.path)[1]
    values.pop("kind")
    earlier = config_from_values(type(config), values, where=str(run.config)).fit
    before = count_steps(replace(config.fit, steps=earlier.steps, epochs=earlier.epochs), loop.batches.per_epoch)
    if before != steps:
        optimizer = config.optimizer
        rates = [
            learning_rate_factor(step, length, schedule=optimizer.schedule, warmup=optimizer.warmup_steps)
            for length in (before, steps)
        ]
        log.info(
            f"note: the run was planned with {before} steps and now has {steps}. Learning rate, ramp-up and the teacher's "
            f"default decay depend on the length: at step {step}, "
            f"the rate changes from {rates[0]:.1%} to {rates[1]:.1%} of its base. "
            f"To get the results of a run of {steps} steps, train a new one"
        )
    if processes.is_first():
        keep_config(run, config)


def place(networks: Mapping[str, nn.Module], device: torch.device, *, channels_last: bool) -> None:
    """Move networks to the device and the memory layout, in place; depthwise convolutions are far faster channels last."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network in networks.values():
        network.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def settle_precision(config: FitConfig, task: Task, batches: Batches, device: torch.device) -> str:
    """Resolve precision "auto" by timing a step of each; weights, statistics and random state are not changed."""
    if config.precision != "auto" or device.type != "cpu":
        return choose_precision(config.precision, device, lambda _: None)
    batch = next(batches.from_batch(0))
    buffers, random = BufferKeeper(task.networks.values()), torch.get_rng_state()
    buffers.keep()

    def trial(precision: str) -> None:
        with autocast(device, precision):
            losses = task.losses(batch, 0)
        losses.total.backward()  # type: ignore[no-untyped-call]

    # All processes make the trial, whose losses may need the others; the first one's times count.
    found = choose_precision(config.precision, device, trial)
    chosen = str(processes.first_decides(lambda: found))
    buffers.restore()
    torch.set_rng_state(random)
    for parameter in task.parameters():
        parameter.grad = None
    log.info(f"precision auto: {chosen} is faster here")
    return chosen


def latest_checkpoint(run: RunFolder) -> Checkpoint | None:
    """The newest valid checkpoint, with a warning for damaged newer ones; None if there is none yet."""
    checkpoint, damaged = run.checkpoints.latest()
    for error in damaged:
        log.warning(f"warning: {error}; using the checkpoint before it")
    if checkpoint is None:
        metrics = run.path / "metrics.csv"
        if metrics.exists() and read_metrics(metrics) and not run.checkpoints.none_yet:
            raise UserError(
                f"{run.path} has no checkpoints, although {metrics} records steps; restore its folder checkpoints, "
                "or start a new run without --resume"
            )
        log.info("no checkpoint yet: starting from step 0")
    return checkpoint


def open_tracker(run: RunFolder, checkpoint: Checkpoint | None, *, tensorboard: bool) -> contextlib.closing[Tracker]:
    """The tracker of a run that starts or resumes from ``checkpoint``; a context that closes it, also after an error."""
    if not processes.is_first():
        return contextlib.closing(Silent())
    return contextlib.closing(
        Tracker(run.path, tensorboard=tensorboard, first_step=checkpoint.step if checkpoint else 0)
    )
