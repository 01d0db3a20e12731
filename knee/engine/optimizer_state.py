"""Save an optimizer's state as named tensors and plain values, and restore it with checks: checkpoints may be untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from knee.io.plain import shown

_MOMENTS: Mapping[type, set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}
_RATES = ("lr", "initial_lr")
_KERNELS = ("fused", "foreach")
"""Options that choose kernels; they depend on the device and may differ from the saved run."""


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as named tensors, and its parameter groups as plain values."""
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
    """The inverse of ``flatten_optimizer``, in place. Raises ValueError, KeyError or TypeError if it does not fit.

    Learning rates are taken from ``groups``; everything else there must be equal to this optimizer's own values.
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
                # Fused optimizers ignore strides: a moment must have the memory layout of its weight (such as channels_last),
                # otherwise its values are applied to the wrong weights.
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _checked_groups(optimizer: torch.optim.Optimizer, saved: Any) -> list[dict[str, Any]]:
    """The optimizer's own groups with the saved learning rates. Raises ValueError if anything else differs."""
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(saved, list) or len(saved) != len(own) or not all(isinstance(group, dict) for group in saved):
        raise ValueError(f"the optimizer's groups are {shown(saved)}")
    for group, before in zip(own, saved, strict=True):
        if not {"params", "lr"} <= set(before):
            raise ValueError(f"the optimizer's groups are {shown(saved)}")
        for key, value in before.items():
            if key in _RATES:
                if type(value) not in (int, float) or not math.isfinite(value):
                    raise ValueError(f"the optimizer's {key} is {shown(value)}, not a number")
                group[key] = value
            elif key in group and key not in _KERNELS and _listed(value) != _listed(group[key]):
                raise ValueError(f"the optimizer's {key} is {shown(value)}, not {shown(group[key])}")
    return list(own)


def _listed(value: Any) -> Any:
    """A tuple as a list, as JSON stores it."""
    return list(value) if isinstance(value, tuple) else value
