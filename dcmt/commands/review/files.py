"""The files of a run's review, and the hash of the reviewed model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dcmt.config import GraderConfig
from dcmt.trained.loaded import KINDS
from knee.engine.checkpoint import Checkpoint
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, open_run
from knee.errors import UserError
from knee.io.files import typed
from knee.review.key import KeyedCase, read_key


def review_folder(run: RunFolder, split: str) -> Path:
    """The default folder of an export, with cases named by hash, to be handed to readers."""
    return run.path / "review" / split


def key_path(run: RunFolder) -> Path:
    """The key from cases to images, for all exports of the run."""
    return run.local / "review_key.csv"


def sanity_path(run: RunFolder) -> Path:
    """The figure of the weight-randomisation check."""
    return run.figures / "sanity.png"


def run_name(run: RunFolder) -> str:
    """The name of the run in verdicts files."""
    return run.path.resolve().name


def model_hash(checkpoint: Checkpoint) -> str:
    """The first 16 hex digits of the SHA-256 of the teacher's weights."""
    sums = checkpoint.state["sha256"]
    if "teacher.safetensors" not in sums:
        raise UserError(f"{checkpoint.folder} has no teacher; restore the run's own checkpoint")
    return str(sums["teacher.safetensors"])[:16]


def open_reviewed(path: Path) -> tuple[RunFolder, dict[str, Any], dict[str, KeyedCase]]:
    """A grader's run that was exported for review, its config as plain values, and its key. Raises UserError."""
    run, values = open_run(path)
    kind = values.pop("kind")
    if kind not in KINDS:
        raise UserError(f"{path} is a run of kind {kind:.80}; a review needs a grader's run")
    config: GraderConfig = config_from_values(GraderConfig, values, where=str(run.config))
    if not key_path(run).exists():
        raise UserError(f"{path} was not exported for review yet; export it first: dcmt review export {typed(path)}")
    return run, {"kind": kind, **dataclasses.asdict(config)}, read_key(key_path(run))


def keep_private(path: Path) -> None:
    """Make a file that names patients or readers readable only by its owner."""
    if path.exists():
        path.chmod(0o600)
