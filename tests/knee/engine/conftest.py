"""Checkpoints of small networks, and what runs of the loop leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcmt.config import GraderConfig
from knee.engine.checkpoint import Checkpoints
from knee.engine.fit import Fit
from knee.engine.run import RunFolder, create_run
from knee.engine.tracking import read_metrics


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def save(checkpoints: Checkpoints, small_grader: Callable[..., nn.Module]) -> Callable[..., Path]:
    """Saves a checkpoint of one small network at a step: ``save(3, seed=1)``."""

    def write(step: int, *, seed: int = 0, grades: int = 3) -> Path:
        network = small_grader(seed=seed, grades=grades)
        return checkpoints.save(
            step, {"student": network}, {"random": {"cpu": torch.get_rng_state()}}, {"precision": "fp32"}
        )

    return write


@pytest.fixture
def everything() -> Callable[[Fit], dict[str, Tensor]]:
    """All weights, buffers and optimiser state of a run, by name."""

    def collect(fit: Fit) -> dict[str, Tensor]:
        found = {
            f"{name}.{key}": value.clone()
            for name, network in fit.task.networks.items()
            for key, value in network.state_dict().items()
        }
        for number, entry in fit.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{key}": torch.as_tensor(value).clone() for key, value in entry.items()}
        return found

    return collect


@pytest.fixture
def assert_same() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]:
    """Fails where two such collections differ in a bit."""

    def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []

    return compare


@pytest.fixture
def recorded() -> Callable[[Path], list[tuple[int, str, float]]]:
    """Rows of a run's metrics.csv, without those that depend on the clock."""

    def read(run: Path) -> list[tuple[int, str, float]]:
        clock = ("system/images_per_s", "system/memory_gib")
        return [row for row in read_metrics(run / "metrics.csv") if row[1] not in clock]

    return read


@pytest.fixture
def started(tmp_path: Path, grader_config: Callable[..., GraderConfig]) -> RunFolder:
    """A run folder in which training has begun."""
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    (run.path / "metrics.csv").write_text("step,name,value\n")
    return run
