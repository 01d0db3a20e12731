"""From a study to the runs it needs: their options, and the hashes by which a finished one is known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dcmt.config import GraderConfig
from experiments.results.code import ROOT, code_hash
from experiments.results.data import DataPlan
from experiments.results.study import Cell, Row, Study, run_name
from knee.engine.options import read_config
from knee.engine.run import split_private
from knee.errors import UserError

_NOT_IN_HASH = ("name", "runs", "report")
_NOT_IN_HASH_OF = {
    "data": ("manifest", "split", "cache", "workers"),
    "fit": ("threads", "log_every", "checkpoint_minutes", "precision"),  # the result tells the precision
}
_NEUTRAL = {"model.normalise": "fixed", "loss.teacher_mirror": False}
"""Options that came after the first results, with the value that does what was done before: left out there."""
_NOTHING = object()
_CONSISTENCIES = ("probability_consistency", "attention_consistency", "flip_consistency")
_OF_CONSISTENCIES = ("ramp", "ramp_start", "teacher_temperature", "teacher_mirror")
"""What acts on those terms alone."""
_ALIKE = (
    "views", "optimizer", "attention", "model", "data.labeled_per_batch", "data.image_size", "data.mask_dilation",
    "fit.steps", "fit.epochs", "fit.accumulation", "fit.precision", "fit.validate_every", "fit.patience",
)  # fmt: skip
"""What rows that are compared have in common, besides the data."""
_ALIKE_WITH_A_TEACHER = ("loss.ramp", "loss.ramp_start")
"""The same, of rows that learn from a teacher's answers."""


@dataclass(frozen=True)
class Job:
    """One run: everything that a process of its own needs to train it and store its result."""

    name: str
    study: str
    row: str
    fraction: float
    seed: int
    arguments: tuple[str, ...]
    """Of train.py, without the paths of the data and of the run."""
    config: dict[str, Any]
    """The resolved config, its paths left out."""
    data: dict[str, Any]
    """What the data are, without a path."""
    config_hash: str
    """Of config and data."""
    code: tuple[str, ...]
    """Modules that make the numbers."""
    code_hash: str
    """Of these when the command was started."""
    checkpoint: str
    mirror: bool

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """As `to_json` wrote it."""
        values = json.loads(text)
        return cls(**{**values, "arguments": tuple(values["arguments"]), "code": tuple(values["code"])})


def make_job(study: Study, cell: Cell, seed: int, plan: DataPlan, *, more: Sequence[str] = ()) -> Job:
    """The run of a cell and a seed; ``more`` are options of train.py that come last. Raises UserError."""
    row = study.row(cell.row)
    shared = _shared_arguments(study, cell, more)
    arguments = (*shared, f"--data.labeled_fraction={cell.fraction:g}", f"--fit.seed={seed}")
    config = _config(shared, cell, seed)
    about = plan.about(seed)
    return Job(
        name=run_name(study.name, row.training, cell.fraction, seed),
        study=study.name,
        row=row.training,
        fraction=cell.fraction,
        seed=seed,
        arguments=arguments,
        config=split_private(config)[0],
        data=about,
        config_hash=_hash({"config": decisive(config), "data": about, "checkpoint": study.checkpoint}),
        code=study.code,
        code_hash=code_hash(study.code),
        checkpoint=study.checkpoint,
        mirror=study.mirror,
    )


def _shared_arguments(study: Study, cell: Cell, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Of train.py, the same for all seeds."""
    return (*row_arguments(study, study.row(cell.row)), *study.options_at.get(cell.fraction, ()), *more)


def _config(shared: Sequence[str], cell: Cell, seed: int) -> dict[str, Any]:
    config = resolved(shared)
    config["data"]["labeled_fraction"], config["fit"]["seed"] = cell.fraction, seed
    return config


def is_of_now(study: Study, cell: Cell, seed: int, config: dict[str, Any]) -> bool:
    """Whether a stored run of a cell and a seed had the options that the study has now, what changes no number aside."""
    now = split_private(_config(_shared_arguments(study, cell), cell, seed))[0]
    return decisive(now) == decisive(config)


def row_arguments(study: Study, row: Row) -> tuple[str, ...]:
    """The config files of a row and the options of the study and the row, as train.py takes them; the same for all seeds."""
    files = (argument for path in row.configs for argument in ("--config", str(ROOT / "configs" / path)))
    return (*files, f"--data.grade_set={study.grade_set}", *study.options, *row.options)


def resolved(arguments: Sequence[str]) -> dict[str, Any]:
    """The config that train.py makes of its arguments, as plain values. Raises UserError."""
    values: dict[str, Any] = json.loads(_resolved_json(tuple(arguments)))
    return values


@cache
def _resolved_json(arguments: tuple[str, ...]) -> str:
    return json.dumps(dataclasses.asdict(read_config(GraderConfig, arguments, program="train.py")))


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config changes the numbers: no names, paths, threads, reports or last digits.

    >>> decisive({"name": "a", "fit": {"steps": 3, "threads": 1}, "model": {"stage": 3, "normalise": "fixed"}})
    {'fit': {'steps': 3}, 'model': {'stage': 3}}
    """
    kept = {name: value for name, value in config.items() if name not in _NOT_IN_HASH}
    for section, values in kept.items():
        if isinstance(values, dict):
            left_out = _NOT_IN_HASH_OF.get(section, ())
            kept[section] = {
                name: value
                for name, value in values.items()
                if name not in left_out and _NEUTRAL.get(f"{section}.{name}", _NOTHING) != value
            }
    loss = kept.get("loss")
    if loss and not any(loss.get(name) for name in _CONSISTENCIES):
        kept["loss"] = {name: value for name, value in loss.items() if name not in _OF_CONSISTENCIES}
    return kept


def differences_between_rows(study: Study, *, more: Sequence[str] = ()) -> list[str]:
    """What would make the comparison unfair: options that all rows should share and do not. Raises UserError.

    Rows of different families are not compared. The network may differ where a row has another head.
    """
    families: dict[str, dict[str, dict[str, Any]]] = {}
    for row in study.rows:
        families.setdefault(row.family, {})[row.name] = flat(resolved((*row_arguments(study, row), *more)))
    return [difference for configs in families.values() for difference in _differences(configs)]


def _differences(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    for option in next(iter(configs.values())):
        if not any(f"{option}.".startswith(f"{alike}.") for alike in (*_ALIKE, *_ALIKE_WITH_A_TEACHER)):
            continue
        values: dict[str, list[str]] = {}
        for name, config in configs.items():
            if option in _ALIKE_WITH_A_TEACHER and not config["loss.probability_consistency"]:
                continue
            if not (option.startswith("model.") and config["model.head"] == "text"):
                values.setdefault(json.dumps(config[option]), []).append(name)
        if len(values) > 1:
            each = "; ".join(f"{value} for {', '.join(names)}" for value, names in values.items())
            found.append(f"{option} differs: {each}")
    return found


def flat(values: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Nested values by dotted name.

    >>> flat({"fit": {"steps": 3}, "name": "a"})
    {'fit.steps': 3, 'name': 'a'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
    return found


def check_seeds(study: Study, seeds: Sequence[int]) -> None:
    """Refuse seeds given twice, and on the phantom the one that was tuned on. Raises UserError."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {' '.join(map(str, seeds))}: give each once")
    if study.name == "phantom" and 0 in seeds:
        raise UserError("phantom seed 0 was tuned on; report on others, such as --seeds 1 2 3")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def log_path(work: Path, name: str) -> Path:
    """What a process printed."""
    return work / "logs" / f"{name}.log"
