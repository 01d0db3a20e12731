"""Losses between two log rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from knee.task import StepLosses


class Window:
    """Losses and monitors since the last log row; means are taken once, so that no step waits for the device."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.schedules: dict[str, float] = {}
        self.images = 0
        self.started = time.monotonic()
        self._step: list[dict[str, Tensor]] = []
        self._without_gradient: set[str] = set()

    @property
    def count(self) -> int:
        return len(self.values.get("loss/total", ()))

    def add(self, losses: StepLosses) -> None:
        """Note a batch of the step under way."""
        named = {"loss/total": losses.total, **{f"loss/{name}": value for name, value in losses.terms.items()}}
        named |= {name if "/" in name else f"attention_map/{name}": value for name, value in losses.monitors.items()}
        self._step.append({name: value.detach() for name, value in named.items()})
        self._without_gradient |= {name for name, value in losses.terms.items() if not value.requires_grad}

    def terms_under_way(self) -> list[dict[str, Tensor]]:
        """The named terms of each batch of the step under way."""
        return [
            {
                name.removeprefix("loss/"): value
                for name, value in named.items()
                if name.startswith("loss/") and name != "loss/total"
            }
            for named in self._step
        ]

    def keep(self) -> None:
        """The step under way was taken."""
        for named in self._step:
            for name, value in named.items():
                self.values.setdefault(name, []).append(value)
        self._step = []

    def drop(self) -> None:
        """The step under way was skipped: none of its batches counts."""
        self._step = []

    def tensors(self) -> dict[str, Tensor]:
        """What is noted, by name, so that a resumed run logs the same means."""
        return {name: _stacked(values) for name, values in self.values.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take up what `tensors` gave; on ``device``, where the values to come will be."""
        self.values = {name: list(values.to(device).unbind()) for name, values in tensors.items()}

    def means(self) -> dict[str, float]:
        """The mean of each, in order of their names."""
        return {name: _stacked(self.values[name]).mean().item() for name in sorted(self.values)}

    def terms(self) -> set[str]:
        """The named terms of the losses that are noted."""
        return {name.removeprefix("loss/") for name in self.values if name.startswith("loss/")} - {"total"}

    def idle_terms(self) -> set[str]:
        """Terms that were exactly 0 in every batch of the window, or came without a gradient."""
        zero = {
            name for name in self.terms() if self.count >= 2 and not any(v.item() for v in self.values[f"loss/{name}"])
        }
        return zero | self._without_gradient


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.float() for value in values])
