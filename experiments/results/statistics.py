"""Means over seeds with 95 % intervals by bootstrap over patients, and paired differences, from stored runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.results.store import Stored
from experiments.results.study import Cell, Network, Run, Study
from knee.errors import UserError
from knee.evaluation.intervals import patient_weights, percentile_interval, shifted_interval
from knee.evaluation.report import BIASED
from knee.grades import Decision, decide, load_grade_set
from knee.metrics import exceeded_share, weighted_mean, weighted_metrics
from knee.nn.flips import jensen_shannon

Floats = NDArray[np.float64]
SAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; NaN where unknown."""

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]


@dataclass
class Results:
    """The stored runs of a study, and their statistics, computed when first needed.

    Runs on the same test images get the same draws of patients, so differences are paired. The phantoms of different
    seeds have independent draws, averaged draw by draw.
    """

    study: Study
    runs: Mapping[Run, Stored]
    samples: int = SAMPLES
    stale: frozenset[str] = frozenset()
    """Names of runs with another config or version than the study has now."""
    _known: dict[tuple[str, Network], dict[str, Floats]] = field(default_factory=dict)

    def seeds(self, cell: Cell) -> list[int]:
        """The seeds with a run of the cell."""
        trained = Cell(self.study.trained(cell.row), cell.fraction)
        return sorted(run.seed for run in self.runs if run.cell == trained)

    def run(self, cell: Cell, seed: int) -> Stored:
        """A run of the cell."""
        return self.runs[Run(self.study.trained(cell.row), cell.fraction, seed)]

    def network(self, cell: Cell) -> Network:
        """The network reported for the cell's row."""
        return self.study.row(cell.row).network

    def estimate(self, cell: Cell, network: Network, metric: str) -> Estimate | None:
        """The mean over the seeds; None without a run, or where the network does not have the metric."""
        seeds = self.seeds(cell)
        if not seeds or metric not in self._draws(cell, network, seeds[0]):
            return None
        return _estimate({seed: self._draws(cell, network, seed)[metric] for seed in seeds}, biased=metric in BIASED)

    def compare(
        self,
        first: tuple[Cell, Network],
        second: tuple[Cell, Network] | float,
        metric: str,
        *,
        ratio: bool = False,
    ) -> Estimate | None:
        """First minus second (or the ratio of their means), paired, over the seeds of both; None without one.

        Raises:
            UserError: two runs of one seed have different test images.
        """
        seeds = self.seeds(first[0])
        if not isinstance(second, tuple):
            found = {seed: self._draws(*first, seed)[metric] - second for seed in seeds}
            return _estimate(found, biased=metric in BIASED) if found else None
        seeds = [seed for seed in seeds if seed in self.seeds(second[0])]
        if not seeds:
            return None
        for seed in seeds:
            _check_paired(self.run(first[0], seed), self.run(second[0], seed))
        a, b = ({seed: self._draws(*one, seed)[metric] for seed in seeds} for one in (first, second))
        if not ratio:
            return _estimate({seed: a[seed] - b[seed] for seed in seeds}, biased=metric in BIASED)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = {seed: float(a[seed][0] / b[seed][0]) for seed in seeds}
            draws = np.mean(list(a.values()), axis=0) / np.mean(list(b.values()), axis=0)
        return Estimate(float(draws[0]), *percentile_interval(draws[1:]), each)

    def _draws(self, cell: Cell, network: Network, seed: int) -> dict[str, Floats]:
        run = self.run(cell, seed)
        key = run.name, network
        if key not in self._known:
            first = load_grade_set(self.study.grade_set).disease_from
            self._known[key] = draws(run, network, samples=self.samples, disease_from=first)
        return self._known[key]


def draws(run: Stored, network: Network, *, samples: int, disease_from: int = 1) -> dict[str, Floats]:
    """Each metric of a network as (1 + samples,): its value, then its values for resampled patients.

    The draws depend only on the patients and grades of the test images.
    """
    statistics = _statistics(run, network, disease_from)
    seed = zlib.crc32(np.stack([run.patients, run.grades]).astype("<i8").tobytes())
    weightings = [np.ones((1, len(run.grades))), *patient_weights(run.patients, samples=samples, seed=seed)]
    found = [statistics(weights) for weights in weightings]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _statistics(run: Stored, network: Network, disease_from: int) -> Callable[[Floats], dict[str, Floats]]:
    """A function of weights (S, N) that gives every metric, each (S,)."""
    probabilities, grades = run.probabilities(network), run.grades
    decision: Decision = "median" if network.endswith(", median") else "likeliest"
    predicted = decide(probabilities, decision)
    means: dict[str, Floats] = {}
    iou = run.iou(network)
    if iou is not None and not np.isnan(iou).all():
        means |= {"tiou": exceeded_share(iou), "iou": iou}
    flipped = run.flipped(network)
    if flipped is not None:
        means["flip_changed"] = (decide(flipped, decision) != predicted).astype(np.float64)
        means["flip_divergence"] = jensen_shannon(torch.tensor(probabilities), torch.tensor(flipped)).numpy()

    def statistics(weights: Floats) -> dict[str, Floats]:
        of_grades = weighted_metrics(probabilities, predicted, grades, weights, disease_from=disease_from)
        return of_grades | {name: weighted_mean(values, weights) for name, values in means.items()}

    return statistics


def _estimate(by_seed: Mapping[int, Floats], *, biased: bool) -> Estimate:
    mean = np.mean(list(by_seed.values()), axis=0)
    low, high = shifted_interval(mean[1:], float(mean[0])) if biased else percentile_interval(mean[1:])
    return Estimate(float(mean[0]), low, high, {seed: float(values[0]) for seed, values in by_seed.items()})


def _check_paired(first: Stored, second: Stored) -> None:
    same = len(first.grades) == len(second.grades)
    same = same and bool((first.patients == second.patients).all() and (first.grades == second.grades).all())
    if not same:
        raise UserError(
            f"{first.name} and {second.name} have different test images and cannot be compared; remove the older one, and "
            "it is trained again"
        )
