"""What every training command does alike: its options, the run folder, resuming, device and precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from dcmt.checkpoint import Checkpoint
from dcmt.config import DataConfig, FitConfig
from dcmt.device import autocast, choose_device, choose_precision, flush_denormals
from dcmt.fit import Batches, BufferKeeper
from dcmt.options import config_from_values, config_paths, option_names, read_config
from dcmt.run import UNTRAINED, RunFolder, create_run, open_run, require_paths
from dcmt.tracking import Tracker, read_metrics
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.task import Task

Say = Callable[[str], None]
SAFE_ON_RESUME = (
    "fit.steps",
    "fit.epochs",
    "fit.log_every",
    "fit.checkpoint_minutes",
    "fit.patience",
    "data.workers",
    "data.cache",
    "report.cases",
    "report.bootstrap",
)


class TrainConfig(Protocol):
    """What the configs of all kinds of run have in common."""

    @property
    def name(self) -> str: ...
    @property
    def runs(self) -> str: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def fit(self) -> FitConfig: ...


Config = TypeVar("Config", bound=TrainConfig)


@dataclass(frozen=True)
class TrainOptions:
    """What ``train`` takes besides the options of its config."""

    rest: list[str]
    resume: Path | None
    force: bool


def new_or_resumed(
    kind_of_config: type[Config], arguments: Sequence[str], *, kind: str, program: str, by_grades: bool = True
) -> tuple[Config, RunFolder, bool]:
    """The config and run folder of a training command, and whether it goes on with a run. Raises UserError.

    The caller trains within ``dcmt.run.earlier_until_begun``.

    ``by_grades`` false: grades play no part, so a labeled fraction other than 1 is refused and not in the run's name.
    """
    options = split_options(arguments)
    if options.resume is not None and options.force:
        raise UserError(f"--resume goes on with {options.resume}, --force starts a run anew; leave out one of them")
    if options.resume is not None:
        return *_resumed(kind_of_config, options.resume, options.rest, kind=kind, program=program), True
    config = read_config(kind_of_config, options.rest, program=program)
    fraction = config.data.labeled_fraction
    if not by_grades and fraction != 1:
        raise UserError(
            f"data.labeled_fraction is {fraction:g}, but {program} trains on every drawn mask of the training split; leave "
            "the option out, and for fewer masks leave some out of the manifest"
        )
    name = config.name or default_name(options.rest, fraction=fraction if by_grades else None, seed=config.fit.seed)
    path = run_path(config.runs, name)
    return config, create_run(path, config, kind=kind, force=options.force, keep_earlier=True), False


def run_path(runs: str, name: str) -> Path:
    """Where a new run lies. Raises UserError for a name that leads out of the folder of runs."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"name {name!r} leads out of the folder of runs; give a plain name, and the folder by --runs")
    return Path(runs) / name


def split_options(arguments: Sequence[str]) -> TrainOptions:
    """Take out what is not part of a config.

    ``--labeled-fraction`` is short for ``--data.labeled_fraction``, ``--skip-bad`` for ``--data.skip_bad true``.
    """
    rest: list[str] = []
    resume: Path | None = None
    force = False
    given = iter(arguments)
    for argument in given:
        if argument == "--force":
            force = True
        elif argument == "--resume" or argument.startswith("--resume="):
            value = argument.partition("=")[2] or next(given, "")
            if not value:
                raise UserError("--resume needs a run folder")
            resume = Path(value)
        elif argument.partition("=")[0] == "--labeled-fraction":
            rest.append(argument.replace("--labeled-fraction", "--data.labeled_fraction", 1))
        elif argument == "--skip-bad":
            rest.append("--data.skip_bad=true")
        else:
            rest.append(argument)
    return TrainOptions(rest, resume, force)


def _resumed(
    kind_of_config: type[Config], path: Path, changes: Sequence[str], *, kind: str, program: str
) -> tuple[Config, RunFolder]:
    """The config of a run to go on with, with changes that are safe; any other change is refused by name."""
    run, values = open_run(path)
    found = values.pop("kind")
    if found != kind:
        way_out = "resume it by the command that started it"
        if found in UNTRAINED:
            way_out = f"dcmt {found} has nothing to resume: run it again, with --force to replace this one"
        raise UserError(f"{path} is a run of kind {found}, not {kind}; {way_out}")
    before = config_from_values(kind_of_config, values, where=str(run.config))
    after = read_config(kind_of_config, changes, program=program, defaults=values)
    changed = [name for name in option_names(kind_of_config) if attrgetter(name)(before) != attrgetter(name)(after)]
    # The run has a copy of its own, so the file that it was copied from is the same by another name.
    if "data.grade_set" in changed and load_grade_set(before.data.grade_set) == load_grade_set(after.data.grade_set):
        changed.remove("data.grade_set")
    unsafe = [name for name in changed if name not in SAFE_ON_RESUME]
    if unsafe:
        raise UserError(
            f"a resumed run cannot change {', '.join(unsafe)}; it may change {', '.join(SAFE_ON_RESUME)}; start a new run for "
            "anything else"
        )
    require_paths(run, after, "data.manifest", "data.split", "data.grade_set")
    return after, run


def default_name(arguments: Sequence[str], *, fraction: float | None, seed: int) -> str:
    """The run's name where none is given: those of the config files, the labeled fraction where there is one, and the seed.

    >>> default_name(["--config", "configs/phantom.yaml", "--config", "rows/dcmt.yaml"], fraction=0.1, seed=2)
    'phantom-dcmt-f0.1-s2'
    """
    stems = [path.stem for path in config_paths(arguments)] or ["run"]
    return "-".join([*stems, *([] if fraction is None else [f"f{fraction:g}"]), f"s{seed}"])


def start(seed: int, threads: int, device: str, *, deterministic: bool) -> torch.device:
    """Seeds and threads, set in this one place; returns the device."""
    flush_denormals()  # before threads are started: they inherit it
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch before 2.11, in this way alone
    torch.use_deterministic_algorithms(deterministic)
    return choose_device(device)


def place(task: Task, device: torch.device, *, channels_last: bool) -> None:
    """Move a task's networks to the device and into the wanted memory layout, in place."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network in task.networks.values():
        network.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def settle_precision(wanted: str, task: Task, batches: Batches, device: torch.device, *, say: Say) -> str:
    """Resolve precision "auto" by timing a step of each kind; weights, statistics and random state stay as they were."""
    if wanted != "auto" or device.type != "cpu":
        return choose_precision(wanted, device, lambda _: None)
    batch = next(batches.from_batch(0))
    buffers, random = BufferKeeper(task.networks.values()), torch.get_rng_state()
    buffers.keep()

    def trial(precision: str) -> None:
        with autocast(device, precision):
            losses = task.losses(batch, 0)
        losses.total.backward()  # type: ignore[no-untyped-call]

    chosen = choose_precision(wanted, device, trial)
    buffers.restore()
    torch.set_rng_state(random)
    for parameter in task.parameters():
        parameter.grad = None
    say(f"precision auto: {chosen} is faster here")
    return chosen


def count_steps(steps: int, epochs: int, accumulation: int, batches_per_epoch: int) -> int:
    """Optimiser steps of a run: ``epochs`` passes where given, else ``steps``.

    >>> count_steps(100, 0, 1, 50), count_steps(100, 3, 2, 50)
    (100, 75)
    """
    return max(1, epochs * batches_per_epoch // accumulation) if epochs else steps


def latest_checkpoint(run: RunFolder, *, say: Say) -> Checkpoint | None:
    """The newest whole checkpoint; says what was wrong with newer ones. None where there is none yet."""
    checkpoint, damaged = run.checkpoints.latest()
    for fault in damaged:
        say(f"warning: {fault}; going back to the checkpoint before it")
    if checkpoint is None:
        metrics = run.path / "metrics.csv"
        if metrics.exists() and read_metrics(metrics) and not run.checkpoints.none_yet:
            raise UserError(
                f"{run.path} has no checkpoint any more, though {metrics} holds steps of it; put its folder checkpoints "
                "back, or start from step 0 by --force without --resume"
            )
        say("no checkpoint yet: starting from step 0")
    return checkpoint


def open_tracker(run: RunFolder, checkpoint: Checkpoint | None, *, tensorboard: bool) -> contextlib.closing[Tracker]:
    """The tracker of a run that starts, or goes on from ``checkpoint``; a context that closes it, an error notwithstanding."""
    return contextlib.closing(
        Tracker(run.path, tensorboard=tensorboard, first_step=checkpoint.step if checkpoint else 0)
    )
