"""From a training command's arguments to a config and a run folder: a new run, or one to resume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from knee.engine.options import config_from_values, config_paths, option_names, read_config
from knee.engine.run import UNTRAINED, RunFolder, create_run, open_run, require_paths
from knee.engine.training import RunConfig
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.nn import processes

log = logging.getLogger(__name__)
SAFE_ON_RESUME = (
    "fit.steps",
    "fit.epochs",
    "fit.log_every",
    "fit.checkpoint_minutes",
    "fit.patience",
    "fit.device",
    "data.workers",
    "data.cache",
    "report.cases",
    "report.bootstrap",
)


Config = TypeVar("Config", bound=RunConfig)


def new_or_resumed(
    kind_of_config: type[Config], arguments: Sequence[str], *, kind: str, program: str, by_grades: bool = True
) -> tuple[Config, RunFolder, bool]:
    """The config and run folder of a training command, and whether it resumes a run. Raises UserError.

    ``by_grades`` false: training does not use grades, so a labeled fraction other than 1 is refused and not in the run's name.
    """
    found: tuple[Config, RunFolder, bool] = processes.first_decides(
        _new_or_resumed, kind_of_config, arguments, kind=kind, program=program, by_grades=by_grades
    )
    return found


def _new_or_resumed(
    kind_of_config: type[Config], arguments: Sequence[str], *, kind: str, program: str, by_grades: bool
) -> tuple[Config, RunFolder, bool]:
    rest, resume = split_options(arguments)
    if resume is not None:
        return *_resumed(kind_of_config, resume, rest, kind=kind, program=program), True
    config = read_config(kind_of_config, rest, program=program)
    fraction = config.data.labeled_fraction
    if not by_grades and fraction != 1:
        raise UserError(
            f"data.labeled_fraction is {fraction:g}, but {program} trains on every drawn mask of the training split; leave "
            "the option out, and to use fewer masks remove some from the manifest"
        )
    name = config.name or default_name(rest, fraction=fraction if by_grades else None, seed=config.fit.seed)
    return config, create_run(run_path(config.runs, name), config, kind=kind), False


def run_path(runs: str, name: str) -> Path:
    """The folder of a new run. Raises UserError for a name that leads out of the folder of runs."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"name {name!r} leads out of the folder of runs; give a plain name, and the folder by --runs")
    return Path(runs) / name


def split_options(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Split arguments into the options of the config and the run to resume, if any.

    ``--labeled-fraction`` is short for ``--data.labeled_fraction``, ``--skip-bad`` for ``--data.skip_bad true``.
    """
    rest: list[str] = []
    resume: Path | None = None
    given = iter(arguments)
    for argument in given:
        if argument == "--resume" or argument.startswith("--resume="):
            value = argument.partition("=")[2] or next(given, "")
            if not value:
                raise UserError("--resume needs a run folder")
            resume = Path(value)
        elif argument.partition("=")[0] == "--labeled-fraction":
            rest.append(argument.replace("--labeled-fraction", "--data.labeled_fraction", 1))
        elif argument == "--skip-bad":
            rest.append("--data.skip_bad=true")
        elif argument == "--force":
            raise UserError(
                "runs are never overwritten, so there is no --force: leave it out, and the new run becomes NAME-2"
            )
        else:
            rest.append(argument)
    return rest, resume


def _resumed(
    kind_of_config: type[Config], path: Path, changes: Sequence[str], *, kind: str, program: str
) -> tuple[Config, RunFolder]:
    """The config of a run to resume, with safe changes; other changes are refused, and the error names them."""
    run, values = open_run(path)
    found = values.pop("kind")
    if found != kind:
        hint = "resume it with the command that started it"
        if found in UNTRAINED:
            hint = f"dcmt {found} has nothing to resume: run it again"
        raise UserError(f"{path} is a run of kind {found:.80}, not {kind}; {hint}")
    before = config_from_values(kind_of_config, values, where=str(run.config))
    after = read_config(kind_of_config, changes, program=program, defaults=before)
    changed = [name for name in option_names(kind_of_config) if attrgetter(name)(before) != attrgetter(name)(after)]
    # The run has its own copy of the grade set, so the original file is the same grade set with another path.
    if "data.grade_set" in changed and load_grade_set(before.data.grade_set) == load_grade_set(after.data.grade_set):
        changed.remove("data.grade_set")
    unsafe = [name for name in changed if name not in SAFE_ON_RESUME]
    if unsafe:
        raise UserError(
            f"a resumed run cannot change {', '.join(unsafe)}; it may change {', '.join(SAFE_ON_RESUME)}; start a new run for "
            "anything else"
        )
    require_paths(run, after, "data.manifest", "data.split", "data.grade_set")
    if "fit.device" in changed:
        log.info(
            f"note: the device changes from {before.fit.device} to {after.fit.device}: images, views and schedules continue "
            "exactly, but losses and weights may differ by rounding"
        )
    return after, run


def default_name(arguments: Sequence[str], *, fraction: float | None, seed: int) -> str:
    """The default name of a run: the names of the config files, the labeled fraction if any, and the seed.

    >>> default_name(["--config", "configs/phantom.yaml", "--config", "rows/dcmt.yaml"], fraction=0.1, seed=2)
    'phantom-dcmt-f0.1-s2'
    """
    stems = [path.stem for path in config_paths(arguments)] or ["run"]
    return "-".join([*stems, *([] if fraction is None else [f"f{fraction:g}"]), f"s{seed}"])
