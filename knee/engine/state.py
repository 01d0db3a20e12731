"""The state of a run: progress, optimizer, scaler and random state, saved in every checkpoint and restored exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from knee.engine.checkpoint import Checkpoint
from knee.errors import UserError
from knee.io.plain import shown

_MOMENTS: Mapping[type, set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}
_RATES = ("lr", "initial_lr")
_KERNELS = ("fused", "foreach")
"""Which kernels compute a step: a matter of the device, not of the run."""


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
    validation_due: int = 0
    """1 if the run was asked to stop in the validation of this step, which is then repeated when it resumes."""

    def complete(self, *, steps: int, patience: int) -> bool:
        """Whether the run of ``steps`` has nothing left to do, or stopped early; ``patience`` 0: it never does."""
        return (self.step >= steps and not self.validation_due) or 0 < patience <= self.validations_since_best

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


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors, and its parameter groups as plain values."""
    state = optimizer.state_dict()
    tensors = {
        f"{number}.{key}": torch.as_tensor(value)
        for number, entry in state["state"].items()
        for key, value in entry.items()
    }
    return tensors, state["param_groups"]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The inverse of ``flatten_optimizer``, in place. Raises ValueError, KeyError or TypeError where it does not fit.

    Learning rates are the saved ones; everything else in ``groups`` must be as this optimiser has it, by the config.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if any(not 0 <= number < count for number in state):
        raise ValueError(f"moments of more than the {count} weights that are trained")
    optimizer.load_state_dict({"state": state, "param_groups": _checked_groups(optimizer, groups)})
    wanted = _MOMENTS.get(type(optimizer))
    for parameter, entry in optimizer.state.items():
        if wanted and set(entry) != wanted:
            raise ValueError(f"a weight with {', '.join(sorted(entry))}, not {', '.join(sorted(wanted))}")
        for key, value in entry.items():
            if value.shape != (() if key == "step" else parameter.shape):
                raise ValueError(f"{key} of shape {tuple(value.shape)} for a weight of shape {tuple(parameter.shape)}")
            if value.ndim:
                # Fused optimisers walk through memory: a moment must lie as its weight does (channels_last, say), or
                # each number meets another weight's.
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _checked_groups(optimizer: torch.optim.Optimizer, saved: Any) -> list[dict[str, Any]]:
    """The optimiser's own groups with the saved learning rates. Raises ValueError where anything else differs."""
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(saved, list) or len(saved) != len(own) or not all(isinstance(group, dict) for group in saved):
        raise ValueError(f"the optimiser's groups are {shown(saved)}")
    for group, before in zip(own, saved, strict=True):
        if not {"params", "lr"} <= set(before):
            raise ValueError(f"the optimiser's groups are {shown(saved)}")
        for key, value in before.items():
            if key in _RATES:
                if type(value) not in (int, float) or not math.isfinite(value):
                    raise ValueError(f"the optimiser's {key} is {shown(value)}, not a number")
                group[key] = value
            elif key in group and key not in _KERNELS and _listed(value) != _listed(group[key]):
                raise ValueError(f"the optimiser's {key} is {shown(value)}, not {shown(group[key])}")
    return list(own)


def _listed(value: Any) -> Any:
    """A tuple as JSON keeps it."""
    return list(value) if isinstance(value, tuple) else value
