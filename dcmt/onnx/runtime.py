"""ONNX Runtime: one session for a file's content, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError

Run = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]]
MOST_BYTES = 1 << 31


def require(*packages: str) -> None:
    """Raises UserError if a package of the extra ``onnx`` is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} not installed; install: pip install 'dcmt-knee[onnx]'")


def open_session(content: bytes, *, threads: int = 0) -> Any:
    """An ``onnxruntime.InferenceSession``. Raises UserError if the content is not a model.

    Opened from memory, a file from a stranger cannot name other files as parts of it.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"it is not a model that ONNX Runtime can run ({str(error)[:200]})") from error


def session_of(content: bytes, *, threads: int = 0) -> Run:
    """The outputs of a file's network for prepared images (B, 1, S, S)."""
    session = open_session(content, threads=threads)
    return lambda images: session.run(None, {"image": images})
