"""Device, precision and memory layout of a run."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from knee.errors import UserError
from knee.io.plain import shown

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_DEVICE = re.compile(r"cpu|(cuda|mps|xpu)(:[0-9]{1,3})?")
PRECISIONS = ("fp32", *_AUTOCAST_TYPES)


def choose_device(name: str) -> torch.device:
    """The device of ``name``; "auto" takes CUDA, then Apple MPS, then the CPU. Raises UserError if it is not available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    if not _DEVICE.fullmatch(name):
        raise UserError(f"fit.device {shown(name)} cannot be used here (no such device); take auto, cpu, cuda or mps")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        reason = "no such device" if reason.startswith("Expected one of") else reason
        raise UserError(f"fit.device {name!r} cannot be used here ({reason}); take auto, cpu, cuda or mps") from error
    return device


def flush_denormals() -> None:
    """From here on, treat numbers below 1e-38 as 0 on the CPU, in this thread and in the threads that it starts.

    Weight decay shrinks the weights of inactive filters to such numbers, with which a processor computes at a fifth of its
    speed: a long fp32 run that overfitted its few labels became that slow (``docs/log.md``).
    """
    torch.set_flush_denormal(True)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The autocast context of ``precision`` (fp32, bf16 or fp16)."""
    dtype = autocast_type(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def autocast_type(precision: str) -> torch.dtype | None:
    """The autocast type of a precision by name; None for fp32."""
    return _AUTOCAST_TYPES.get(precision)


def choose_precision(wanted: str, device: torch.device, trial: Callable[[str], None]) -> str:
    """Resolve "auto": on CUDA bf16 where supported, on MPS fp32, on a CPU whichever of bf16 and fp32 is faster.

    ``trial(precision)`` runs one training step; on a CPU it is called three times for each, and the fastest counts.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        with torch.cuda.device(device):  # emulated bf16 is slower than fp32
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return min(("bf16", "fp32"), key=lambda precision: _fastest(lambda: trial(precision)))


def _fastest(step: Callable[[], None], *, tries: int = 3) -> float:
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised this error because GPU or main memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: of the GPU if there is one, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
        import sys
    except ImportError:  # Windows has no resource module
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
