"""Means over seeds with 95 % intervals by bootstrap over patients, and paired differences, from stored runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.results.store import Stored
from experiments.results.study import Cell, Network, Study
from knee.errors import UserError
from knee.evaluation.intervals import patient_weights, percentile_interval
from knee.metrics import exceeded_share, weighted_mean, weighted_metrics
from knee.nn.flips import jensen_shannon

Floats = NDArray[np.float64]
SAMPLES = 2000
_IOUS = ("tiou", "iou")
_FLIPS = ("flip_changed", "flip_divergence")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; NaN where unknown."""

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]


@dataclass
class Results:
    """The stored runs of a study by (row trained, fraction, seed), and their statistics, computed when first asked for.

    Runs on the same test images get the same draws of patients, so differences are paired; the phantoms of different
    seeds are drawn from apart, and averaged draw by draw.
    """

    study: Study
    runs: Mapping[tuple[str, float, int], Stored]
    samples: int = SAMPLES
    _known: dict[tuple[str, Network], dict[str, Floats]] = field(default_factory=dict)

    def seeds(self, cell: Cell) -> list[int]:
        """Seeds of which the cell has a run."""
        row = self.study.row(cell.row).training
        return sorted(seed for trained, fraction, seed in self.runs if (trained, fraction) == (row, cell.fraction))

    def is_shown(self, cell: Cell) -> bool:
        """Whether a table has a line for the cell: it has a run, or none though it belongs to the part run by default."""
        return cell not in self.study.more_cells or bool(self.seeds(cell))

    def of(self, cell: Cell) -> list[Stored]:
        """The runs of a cell, by seed."""
        return [self._run(cell, seed) for seed in self.seeds(cell)]

    def network(self, cell: Cell) -> Network:
        """The network that stands for the cell's row."""
        return self.study.row(cell.row).network

    def estimate(self, cell: Cell, network: Network, metric: str) -> Estimate | None:
        """The mean over the seeds; None without a run or where the metric is not known of it."""
        seeds = self.seeds(cell)
        if not seeds or metric not in self._draws(cell, network, seeds[0]):
            return None
        return _estimate({seed: self._draws(cell, network, seed)[metric] for seed in seeds})

    def compare(
        self,
        first: tuple[Cell, Network],
        second: tuple[Cell, Network] | float,
        metric: str,
        *,
        ratio: bool = False,
    ) -> Estimate | None:
        """First minus second (or the ratio of their means), paired, over the seeds that both have; None without one.

        Raises:
            UserError: two runs of one seed are of different test images.
        """
        seeds = self.seeds(first[0])
        if not isinstance(second, tuple):
            found = {seed: self._draws(*first, seed)[metric] - second for seed in seeds}
            return _estimate(found) if found else None
        seeds = [seed for seed in seeds if seed in self.seeds(second[0])]
        if not seeds:
            return None
        for seed in seeds:
            _check_paired(self._run(first[0], seed), self._run(second[0], seed))
        a, b = ({seed: self._draws(*one, seed)[metric] for seed in seeds} for one in (first, second))
        if not ratio:
            return _estimate({seed: a[seed] - b[seed] for seed in seeds})
        with np.errstate(divide="ignore", invalid="ignore"):
            each = {seed: float(a[seed][0] / b[seed][0]) for seed in seeds}
            draws = np.mean(list(a.values()), axis=0) / np.mean(list(b.values()), axis=0)
        return Estimate(float(draws[0]), *percentile_interval(draws[1:]), each)

    def _run(self, cell: Cell, seed: int) -> Stored:
        return self.runs[self.study.row(cell.row).training, cell.fraction, seed]

    def _draws(self, cell: Cell, network: Network, seed: int) -> dict[str, Floats]:
        """Each metric (1 + samples,): itself, then for each draw of patients."""
        run = self._run(cell, seed)
        key = run.name, network
        if key not in self._known:
            self._known[key] = draws(run, network, samples=self.samples)
        return self._known[key]


def draws(run: Stored, network: Network, *, samples: int) -> dict[str, Floats]:
    """Each metric of a network as (1 + samples,): the metric itself, then its values when patients are drawn again.

    The draws depend on the patients and grades of the test images alone.
    """
    statistics = _statistics(run, network)
    seed = zlib.crc32(np.stack([run.patients, run.grades]).astype("<i8").tobytes())
    weightings = [np.ones((1, len(run.grades))), *patient_weights(run.patients, samples=samples, seed=seed)]
    found = [statistics(weights) for weights in weightings]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _statistics(run: Stored, network: Network) -> Callable[[Floats], dict[str, Floats]]:
    """A function of weights (S, N) that gives every metric, each (S,)."""
    probabilities, grades = run.probabilities(network), run.grades
    means: dict[str, Floats] = {}
    iou = run.iou(network)
    if iou is not None and not np.isnan(iou).all():
        means |= dict(zip(_IOUS, (exceeded_share(iou), iou), strict=True))
    mirrored = run.mirrored(network)
    if mirrored is not None:
        changed = (mirrored.argmax(axis=1) != probabilities.argmax(axis=1)).astype(np.float64)
        divergence = jensen_shannon(torch.tensor(probabilities), torch.tensor(mirrored)).numpy()
        means |= dict(zip(_FLIPS, (changed, divergence), strict=True))

    def statistics(weights: Floats) -> dict[str, Floats]:
        of_grades = weighted_metrics(probabilities, grades, weights)
        return of_grades | {name: weighted_mean(values, weights) for name, values in means.items()}

    return statistics


def _estimate(by_seed: Mapping[int, Floats]) -> Estimate:
    mean = np.mean(list(by_seed.values()), axis=0)
    low, high = percentile_interval(mean[1:])
    return Estimate(float(mean[0]), low, high, {seed: float(values[0]) for seed, values in by_seed.items()})


def _check_paired(first: Stored, second: Stored) -> None:
    same = len(first.grades) == len(second.grades)
    same = same and bool((first.patients == second.patients).all() and (first.grades == second.grades).all())
    if not same:
        raise UserError(
            f"{first.name} and {second.name} are of different test images and cannot be compared; remove the older one, and "
            "it is run again"
        )
