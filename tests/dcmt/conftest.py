"""Tiny networks and batches for the tests of the loop and its task, and runs of the loop with what they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcmt.checkpoint import Checkpoints
from dcmt.config import FitConfig, GraderConfig, OptimizerConfig
from dcmt.fit import Fit
from dcmt.run import RunFolder, create_run
from dcmt.task import LossWeights, MeanTeacher
from dcmt.tracking import Tracker, read_metrics
from knee.task import Batch, Grading


class SmallGrader(nn.Module):
    """Two convolutions at stride 4, a classifier that maps and grades; with or without normalisation and dropout."""

    def __init__(self, *, grades: int = 3, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, grades)

    def forward(self, images: Tensor) -> Grading:
        features = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        logits = self.classifier(self.dropout(features.mean((2, 3))))
        return Grading(logits, F.conv2d(features, self.classifier.weight.detach()[:, :, None, None]))


@pytest.fixture
def small_grader() -> Callable[..., SmallGrader]:
    """Builds a small grader from a seed: ``small_grader(seed=1, norm=False)``."""

    def build(*, seed: int = 0, grades: int = 3, norm: bool = True, dropout: float = 0.0) -> SmallGrader:
        torch.manual_seed(seed)
        return SmallGrader(grades=grades, norm=norm, dropout=dropout)

    return build


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
def small_batch() -> Callable[..., Batch]:
    """A random batch from a seed, the teacher's view a noisy copy of the student's: ``small_batch(4, 2, seed=1)``."""

    def build(
        labeled: int = 4, unlabeled: int = 2, *, seed: int = 0, size: int = 16, masked: int | None = None
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        student = torch.rand(labeled + unlabeled, 1, size, size, generator=generator)
        noise = torch.rand(student.shape, generator=generator)
        masks = (torch.rand(labeled, size, size, generator=generator) > 0.7).float()
        has_mask = torch.arange(labeled) < (labeled if masked is None else masked)
        return Batch(
            student=student,
            teacher=0.8 * student + 0.2 * noise,
            grades=torch.randint(0, 3, (labeled,), generator=generator),
            masks=masks * has_mask[:, None, None],
            has_mask=has_mask,
        )

    return build


class SeededBatches:
    """Batch k of the run is a function of k; ``spoiled`` ones hold NaN."""

    def __init__(self, make: Callable[..., Batch], spoiled: frozenset[int] = frozenset()) -> None:
        self.per_epoch = 5
        self.make = make
        self.spoiled = spoiled
        self.served: list[int] = []

    def from_batch(self, batch: int) -> Iterator[Batch]:
        while True:
            found = self.make(seed=batch)
            if batch in self.spoiled:
                found.student[0, 0, 0, 0] = float("nan")
            self.served.append(batch)
            yield found
            batch += 1


@pytest.fixture
def seeded_batches(small_batch: Callable[..., Batch]) -> Callable[..., SeededBatches]:
    """Small batches by number; those in a given set hold NaN: ``seeded_batches(frozenset({2}))``."""

    def build(spoiled: frozenset[int] = frozenset()) -> SeededBatches:
        return SeededBatches(small_batch, spoiled)

    return build


@pytest.fixture
def make_fit(
    tmp_path: Path, small_grader: Callable[..., nn.Module], seeded_batches: Callable[..., SeededBatches]
) -> Iterator[Callable[..., Fit]]:
    """A run of the loop in ``tmp_path / folder``; ``resume=True`` goes on from the last checkpoint there."""
    trackers: list[Tracker] = []

    def build(
        folder: str = "run",
        *,
        steps: int = 7,
        resume: bool = False,
        spoiled: frozenset[int] = frozenset(),
        dropout: float = 0.0,
        norm: bool = True,
        said: list[str] | None = None,
        optimizer: OptimizerConfig | None = None,
        precision: str = "fp32",
        batches: Any = None,
        **config: Any,
    ) -> Fit:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        torch.manual_seed(0)
        # channels_last, as by default: what lies in another order in memory must come back in that order.
        student = small_grader(seed=2, dropout=dropout, norm=norm).to(memory_format=torch.channels_last)
        task = MeanTeacher(student, weights=LossWeights(), decay=0.8, ramp_steps=6, best_metric="val/score")
        task.validation = lambda networks, step: {"val/score": float(-abs(step - 4)), "val/other": step / 7}
        checkpoints = Checkpoints(path / "checkpoints")
        checkpoint = checkpoints.latest()[0] if resume else None
        fit = Fit(
            task=task,
            batches=batches or seeded_batches(spoiled),
            config=FitConfig(**{"log_every": 2, "validate_every": 3, **config}),
            optimizer_config=optimizer or OptimizerConfig(),
            device=torch.device("cpu"),
            precision=precision,
            tracker=Tracker(path, tensorboard=False, first_step=checkpoint.step if checkpoint else 0),
            checkpoints=checkpoints,
            steps=steps,
            say=(said if said is not None else []).append,
            state={"manifest_sha256": "m", "split_sha256": "s"},
            resume_command="dcmt train --resume RUN",
        )
        trackers.append(fit.tracker)
        if checkpoint is not None:
            fit.restore(checkpoint)
        return fit

    yield build
    for tracker in trackers:
        tracker.close()


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
