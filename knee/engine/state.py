"""The state of a run: progress, optimizer, scaler and random state, saved in every checkpoint and restored exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from knee.engine.checkpoint import Checkpoint
from knee.engine.optimizer_state import flatten_optimizer, restore_optimizer
from knee.errors import UserError
from knee.io.plain import shown


@dataclass
class Progress:
    """The progress of a run, saved with every checkpoint."""

    step: int = 0
    best_value: float | None = None
    best_step: int = -1
    validations_since_best: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0

    def note(self, value: float) -> bool:
        """Record a validation's value; returns whether it is the best so far. NaN: there were no validation images."""
        if math.isnan(value):
            return False
        if self.best_value is None or value > self.best_value:
            self.best_value, self.best_step, self.validations_since_best = value, self.step, 0
            return True
        self.validations_since_best += 1
        return False


@dataclass(frozen=True)
class LoopState:
    """The parts of a run, apart from the networks, that change with every step."""

    optimizer: torch.optim.Optimizer
    scaler: Any
    device: torch.device

    def collect(self, progress: Progress) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors by group (optimizer, random) and plain values, for a checkpoint."""
        tensors, groups = flatten_optimizer(self.optimizer)
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            random["mps"] = torch.mps.get_rng_state()
        plain = {"progress": vars(progress), "optimizer_groups": groups, "scaler": self.scaler.state_dict()}
        return {"optimizer": tensors, "random": random}, plain

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Restore optimizer, scaler and random state, in place. Raises UserError if they do not fit this run."""
        try:
            restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"), checkpoint.state["optimizer_groups"])
            self.scaler.load_state_dict(_checked_scaler(checkpoint.state["scaler"]))
            random = checkpoint.tensors("random")
            torch.set_rng_state(random["cpu"])
            if "cuda" in random and self.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"], self.device)
            if "mps" in random and self.device.type == "mps":
                torch.mps.set_rng_state(random["mps"])
            return _checked_progress(checkpoint.state["progress"], checkpoint.step)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{checkpoint.folder} does not fit this run ({type(error).__name__}: {error}); "
                "was it written by another version?"
            ) from error


def _checked_scaler(values: Any) -> dict[str, float]:
    if not isinstance(values, dict) or not all(type(value) in (int, float) and value >= 0 for value in values.values()):
        raise ValueError(f"the loss scaler's state is {shown(values)}")
    return values


def _checked_progress(values: Any, step: int) -> Progress:
    """The progress stored in a checkpoint; raises ValueError or TypeError if it is not valid."""
    progress = Progress(**values)
    for name, value in vars(progress).items():
        if name == "best_value":
            fits = value is None or type(value) in (int, float)
        elif name == "seconds":
            fits = type(value) in (int, float) and value >= 0
        else:
            fits = type(value) is int and value >= (-1 if name == "best_step" else 0)
        if not fits or (name == "step" and value != step):
            raise ValueError(f"progress.{name} is {shown(value)}")
    return progress


def refuse_changed_data(checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
    """Raises UserError if manifest, split or pixels differ from those that the checkpoint was trained on."""
    changed = [
        name.removesuffix("_sha256")
        for name, value in state.items()
        if name.endswith("_sha256") and checkpoint.state.get(name, value) != value
    ]
    if changed:
        raise UserError(
            f"{checkpoint.folder} was trained on other data: {' and '.join(changed)} changed since; restore them, or "
            "start a new run with another --name"
        )
