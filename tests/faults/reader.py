"""Reads files named on standard input, one JSON a line, in bounded memory, and says what came of each.

A process of its own, since a decoder that crashes or takes all memory must not take the tests with it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from knee.errors import UserError
from knee.images.geometry import prepare
from knee.images.read import read_pixels
from knee.intake.folders import manifest_from_folder

# Twice what the largest image that is allowed takes; a bomb would take more.
MEMORY_BYTES = 3 << 30
TOLERANCE = 2.0


def peak_kib() -> int:
    """Peak resident memory of this program alone: getrusage's also remembers the process that it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def outcome(job: dict[str, Any], pictures: Path) -> dict[str, Any]:
    """``refused``, ``equal``, ``differs``, or what is wrong with how the file was handled."""
    path = job["path"]
    try:
        if job.get("scan"):
            manifest_from_folder(path)
            return {"result": "followed a link out of the folder"}
        pixels = read_pixels(path)
        prepared, _ = prepare(pixels.values, 32)
    except UserError as error:
        named = str(error).startswith(path) and (job.get("scan") or "\n" not in str(error))
        return {"result": "refused" if named else f"refused without its name: {error}", "reason": str(error)}
    values = pixels.values
    if values.dtype != np.float32 or values.ndim != 2 or not np.isfinite(values).all() or prepared.shape != (32, 32):
        return {"result": f"read as {values.dtype} of shape {values.shape}, or not finite"}
    if job["good"] is None:
        return {"result": "read", "shape": values.shape}
    good = np.load(pictures / f"{job['good']}.npy")
    if values.shape == good.shape and np.abs(values - good).max() <= TOLERANCE * (
        job["good"].endswith(("jpeg", "webp"))
    ):
        return {"result": "equal"}
    return {"result": "differs", "shape": values.shape, "largest": float(np.abs(values).max())}


def main(pictures: Path) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # a warning that nobody reads is no refusal
    for line in sys.stdin:
        start = time.process_time()
        try:
            found = outcome(json.loads(line), pictures)
        except BaseException as error:  # whatever it is, it is to be told, not to end the reader
            found = {"result": f"raised {type(error).__name__}: {error}"[:300]}
        found["seconds"] = time.process_time() - start
        found["peak_mib"] = peak_kib() >> 10
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
