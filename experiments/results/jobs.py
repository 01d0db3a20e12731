"""From a study to the trainings it needs, and the fingerprint that tells whether a stored run is still current."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dcmt.config import GraderConfig
from experiments.results.study import Row, Run, Study, run_name
from knee.engine.options import read_config
from knee.engine.run import split_private
from segmentation.config import SegmenterConfig

ROOT = Path(__file__).parents[2]
_NO_EFFECT = (
    "name", "runs", "report.", "data.manifest", "data.split", "data.cache", "data.workers", "data.targets",
    "fit.threads", "fit.log_every", "fit.checkpoint_minutes", "fit.precision", "fit.sync_batch_norm",
)  # fmt: skip
"""Options without effect on the numbers, but for their last digits; a result records its precision."""
_CONSISTENCY_LOSSES = ("loss.probability_consistency", "loss.attention_consistency", "loss.flip_consistency")
_OF_CONSISTENCY = ("loss.ramp", "loss.ramp_start", "loss.teacher_temperature", "loss.teacher_flip")
"""Options without effect where no consistency loss has a weight."""
_BEFORE: dict[type[GraderConfig | SegmenterConfig], dict[str, Any]] = {
    GraderConfig: {"model.normalise": "fixed"},
    SegmenterConfig: {"data.labeled_per_batch": 16, "fit.validate_every": 100},
}
"""Values of the options that the first stored runs do not record, where today's default is another."""


class Job(NamedTuple):
    """One training: what a process of its own needs to do it and to store its result."""

    about: dict[str, Any]
    """What identifies the run: name, study, row, fraction, seed, version, checkpoint, data, config; no path."""
    arguments: tuple[str, ...]
    """Of train.py, without the paths of data and run."""
    tta: bool
    """Predict the horizontal flips too."""
    rounds: tuple[str, ...] = ()
    """Options of `dcmt self-train`, which then trains the run."""

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.about["name"])


def make_job(study: Study, run: Run, data: dict[str, Any], *, more: Sequence[str] = ()) -> Job:
    """The job of a run on ``data`` (see `DataPlan.about`); ``more`` options of train.py come last. Raises UserError."""
    shared = row_arguments(study, study.row(run.row), run.fraction, more)
    config = resolved(shared)
    config["data"]["labeled_fraction"], config["fit"]["seed"] = run.fraction, run.seed
    about = {
        "name": run_name(study.name, run),
        "study": study.name,
        **run._asdict(),
        "version": study.version,
        "checkpoint": study.checkpoint,
        "data": data,
        "config": split_private(config)[0],
    }
    rounds = study.row(run.row).rounds
    if rounds:
        about["rounds"] = list(rounds)
    arguments = (*shared, f"--data.labeled_fraction={run.fraction:g}", f"--fit.seed={run.seed}")
    return Job(about, arguments, tta=any("TTA" in network for network in study.networks), rounds=rounds)


def row_arguments(study: Study, row: Row, fraction: float, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The config files and options of a row at a labeled fraction, as train.py takes them; the same for all seeds."""
    files = (f"--config={ROOT / 'configs' / path}" for path in row.configs)
    at_fraction = study.options_at.get(fraction, ())
    return (*files, f"--data.grade_set={study.grade_set}", *study.options, *row.options, *at_fraction, *more)


def resolved(arguments: tuple[str, ...]) -> dict[str, Any]:
    """The config that train.py makes of its arguments, as plain values. Raises UserError."""
    return dataclasses.asdict(_config(arguments))


@cache
def _config(arguments: tuple[str, ...]) -> GraderConfig:
    return read_config(GraderConfig, arguments, program="train.py")


def fingerprint(about: Mapping[str, Any]) -> str:
    """16 hex digits of config, data, checkpoint and study version: runs that share them need not be trained again.

    ``about`` is that of a job or of a stored run. A stored run without a version has version 1.
    """
    data = about["data"]
    if "phantom" in data:
        segmenter = deciding(SegmenterConfig, data["phantom"]["segmenter"])
        data = {"phantom": {**data["phantom"], "segmenter": segmenter}}
    config = deciding(GraderConfig, about["config"])
    rounds = [about["rounds"]] if "rounds" in about else []
    return digest([config, data, about["checkpoint"], about.get("version", 1), *rounds])


def deciding(kind: type[GraderConfig | SegmenterConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options with an effect on the numbers, by dotted name; those missing in ``values`` have their defaults.

    So a run stays current when an option is added whose default changes nothing.
    """
    given = flat(values)
    defaults: dict[str, Any] = flat(dataclasses.asdict(kind()))
    known = defaults | dict(_BEFORE[kind])
    found = {name: given.get(name, value) for name, value in known.items() if not name.startswith(_NO_EFFECT)}
    if kind is GraderConfig and not any(found[name] for name in _CONSISTENCY_LOSSES):
        found = {name: value for name, value in found.items() if name not in _OF_CONSISTENCY}
    return found


def flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested values by dotted name.

    >>> flat({"fit": {"steps": 3}, "name": "a"})
    {'fit.steps': 3, 'name': 'a'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
    return found


def digest(value: Any) -> str:
    """16 hex digits of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
