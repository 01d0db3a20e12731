"""The mean teacher with dual consistency (Huo et al. 2020), and the commands of the toolkit.

run = dcmt.load("runs/NAME")
table = run.predict(["knee.png"], attention=True)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcmt.trained.loaded import LoadedRun

__version__ = "0.1.0"


def load(path: str | Path, *, checkpoint: str | int = "best", device: str = "auto") -> LoadedRun:
    """Open a run folder: networks in eval mode on the device, config and grades.

    ``checkpoint`` is "best", "last" or a step. Raises ``knee.errors.UserError`` if it is not a grader's run.
    """
    from dcmt.trained.loaded import load_run  # keeps importing dcmt fast

    return load_run(Path(path), checkpoint=checkpoint, device=device)
