"""Arrays mapped from .npy files that are pickled as the file's name, so that worker processes share their pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class SharedArray(np.memmap[Any, Any]):
    """A read-only array over a whole .npy file. Parts of it are pickled as ordinary arrays."""

    _whole: Path | None = None

    def __array_finalize__(self, source: Any) -> None:
        super().__array_finalize__(source)
        self._whole = None

    def __reduce__(self) -> tuple[Callable[..., Any], Any]:
        if self._whole is not None:
            return open_shared, (self._whole,)
        return np.asarray(self).__reduce__()  # type: ignore[return-value]


def open_shared(path: Path) -> SharedArray:
    """Map a .npy file. Raises OSError or ValueError where it is missing or damaged."""
    array: SharedArray = np.load(path, mmap_mode="r", allow_pickle=False).view(SharedArray)
    array._whole = path
    return array
