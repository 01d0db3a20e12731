"""The teacher: the exponential moving average of the student (Huo et al. 2020, Eq. 1; Tarvainen and Valpola 2017).

There are three policies for the normalisation statistics (buffers) of the teacher:

- ``own``: the teacher runs in train mode on its own view and computes its own statistics, as in the mean teacher. This needs
  a forward pass of the teacher in every step; otherwise the statistics are never updated.
- ``copy``: the student's buffers are copied after each update.
- ``ema``: floating-point buffers are averaged like the weights; counters are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

BufferPolicy = Literal["own", "copy", "ema"]
BUFFER_POLICIES: tuple[str, ...] = get_args(BufferPolicy)


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student without gradients."""
    return copy.deepcopy(student).requires_grad_(False)


def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """θ' ← decay · θ' + (1 − decay) · θ, in place (Eq. 1); decay in [0, 1]. Buffers are not changed."""
    _check(teacher, student, decay)
    _average(list(teacher.parameters()), list(student.parameters()), decay)


def update_buffers(teacher: nn.Module, student: nn.Module, decay: float, *, policy: BufferPolicy) -> None:
    """Update the teacher's buffers in place, by one of the policies described in the module."""
    if policy == "own":
        return
    # Buffers that are not saved are constants, such as a text tower's mask, which holds −inf and cannot be averaged.
    saved = student.state_dict(keep_vars=True).keys()
    named = zip(teacher.named_buffers(), student.buffers(), strict=True)
    pairs = [(target, source) for (name, target), source in named if name in saved]
    averaged = [(t, s) for t, s in pairs if policy == "ema" and t.is_floating_point()]
    _average([t for t, _ in averaged], [s for _, s in averaged], decay)
    with torch.no_grad():
        for target, source in pairs:
            if policy == "copy" or not target.is_floating_point():
                target.copy_(source)


def _average(targets: list[Tensor], sources: list[Tensor], decay: float) -> None:
    if not targets:
        return
    lerp: Callable[..., None] = torch._foreach_lerp_
    with torch.no_grad():
        lerp(targets, sources, 1.0 - decay)


def _check(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"the teacher's decay must be in [0, 1], got {decay}")
    ours, theirs = len(list(teacher.parameters())), len(list(student.parameters()))
    if ours != theirs:
        raise ValueError(
            f"teacher and student differ: {ours} and {theirs} parameters; make the teacher with make_teacher"
        )
