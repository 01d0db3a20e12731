"""A whole run on each kind of device: trained in each precision, stopped between two log rows, resumed, evaluated.

The CPU is one of them, so that the test itself is tested where there is no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from knee.engine.config import FitConfig
from knee.engine.fit import Fit
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import read_metrics
from knee.engine.training import start

Make = Callable[..., GraderConfig]
Row = tuple[int, str, float]


def on(device: str, precision: str, *, compiled: bool = False) -> Any:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]
    marks = (
        [] if device == "cpu" else [pytest.mark.gpu, pytest.mark.skipif(not there, reason=f"no {device} device here")]
    )
    name = f"{device}-{precision}{'-compiled' if compiled else ''}"
    return pytest.param(device, precision, compiled, marks=marks, id=name)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A run sets this for the process."""
    yield
    torch.use_deterministic_algorithms(False)


def train(config: GraderConfig, path: Path, *, resume: bool = False) -> list[Row]:
    run = RunFolder(path) if resume else create_run(path, config, kind="grader")
    train_grader(config, run, resume=resume)
    return [row for row in read_metrics(path / "metrics.csv") if row[1].startswith("loss/")]


@pytest.mark.parametrize(
    ("device", "precision", "compiled"),
    [
        *(on("cpu", precision) for precision in ("fp32", "bf16")),
        *(on("cuda", precision) for precision in ("fp32", "bf16", "fp16")),
        on("cuda", "bf16", compiled=True),
        on("mps", "fp32"),
    ],
)
def test_a_run_stopped_between_log_rows_goes_on_as_the_undisturbed_one(
    device: str, precision: str, compiled: bool, tmp_path: Path, grader_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "fit.device": device,
        "fit.precision": precision,
        "fit.compile": compiled,
        "fit.deterministic": not compiled,
    }
    config = grader_config(**options, **{"fit.steps": 6, "fit.log_every": 4, "fit.validate_every": 6})
    undisturbed = train(config, tmp_path / "whole")
    step = Fit.step

    def stopping(self: Fit, batches: Any) -> None:
        step(self, batches)
        self._stop = self.progress.step == 3

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "step", stopping)
        assert train(config, tmp_path / "parts") == [], "stopped at step 3, before the first log row"
    resumed = train(config, tmp_path / "parts", resume=True)
    assert [row[:2] for row in resumed] == [row[:2] for row in undisturbed]
    assert {step for step, _, _ in resumed} == {4, 6}
    assert all(math.isfinite(value) for _, _, value in resumed)
    exact = 0 if device == "cpu" else 2e-3  # kernels of a GPU may add in another order
    assert [value for *_, value in resumed] == pytest.approx([value for *_, value in undisturbed], rel=exact, abs=exact)
    assert main(["evaluate", str(tmp_path / "parts"), "--device", device]) == 0


def test_a_run_computes_with_no_denormal_numbers_in_this_thread_nor_in_those_it_starts():
    """They make a long run on a CPU several times slower; ARM and x86 processors can leave them out."""
    tenth = torch.tensor(0.1)

    def smallest() -> float:
        return float(torch.tensor(1e-38) * tenth)

    assert smallest() > 0
    start(FitConfig(threads=1, device="cpu"))
    with ThreadPoolExecutor(1) as pool:
        assert (smallest(), pool.submit(smallest).result()) == (0, 0)
    assert float(torch.tensor(1e-36) * tenth) > 0
