"""Data sets that travel to worker processes with their memory-mapped files by name.

Where workers are spawned rather than forked (macOS, Windows, Python 3.14), a data set is pickled for each of them, and
a memory-mapped array would be pickled as a copy of the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class MappedFile:
    """Where a memory-mapped array lies."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def reduced(build: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What ``__reduce__`` returns for ``build(*arguments)``; whole memory-mapped arrays among these go by name."""
    return _rebuild, (build, [_by_name(value) for value in arguments])


def _by_name(value: Any) -> Any:
    # A part of a mapped array carries the offset of the whole one: only whole ones can be found again.
    if isinstance(value, np.memmap) and not isinstance(value.base, np.memmap) and value.filename is not None:
        return MappedFile(str(value.filename), value.dtype.str, value.shape, value.offset)
    return value


def _opened(value: Any) -> Any:
    if isinstance(value, MappedFile):
        return np.memmap(value.path, dtype=value.dtype, mode="r", shape=value.shape, offset=value.offset)
    return value


def _rebuild(build: Callable[..., Any], arguments: list[Any]) -> Any:
    return build(*map(_opened, arguments))
