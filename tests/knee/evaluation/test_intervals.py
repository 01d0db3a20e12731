"""Bootstrap by patient: whole patients are drawn, the same seed gives the same intervals."""

import math

import numpy as np
import pytest

from knee import metrics
from knee.evaluation.intervals import bootstrap_by_patient, intervals, patient_weights, percentile_interval
from tests.knee.simulated import simulated


class TestIntervals:
    def test_draws_patients_whole(self) -> None:
        patients = ["a", "a", "b", "c", "b"]
        weights = np.concatenate(list(patient_weights(patients, samples=130, seed=0)))
        assert weights.shape == (130, 5)
        assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 4]).all()
        assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()

    def test_same_seed_same_draws(self) -> None:
        first, second, other = (
            np.concatenate(list(patient_weights(range(9), samples=70, seed=seed))) for seed in (1, 1, 2)
        )
        assert (first == second).all() and (first != other).any()

    def test_the_slow_way_agrees_with_the_fast_one(self) -> None:
        rng = np.random.default_rng(5)
        probabilities, grades = simulated(rng, 60)
        patients, predicted = rng.integers(0, 20, 60), probabilities.argmax(axis=1)
        fast = intervals(
            lambda w: metrics.weighted_metrics(probabilities, predicted, grades, w), patients, samples=80, seed=3
        )
        for name, metric in (("kappa", metrics.quadratic_kappa), ("adjacent", metrics.adjacent_accuracy)):
            slow = bootstrap_by_patient(metric, patients, (grades, predicted), samples=80, seed=3)
            assert slow == pytest.approx(fast[name])

    def test_coverage_of_a_proportion(self) -> None:
        rng = np.random.default_rng(0)
        covered = 0
        for trial in range(200):
            right = (rng.random(80) < 0.7).astype(float)
            low, high = intervals(
                lambda w, r=right: {"m": metrics.weighted_mean(r, w)}, range(80), samples=200, seed=trial
            )["m"]
            covered += low <= 0.7 <= high
        assert 0.88 <= covered / 200 <= 0.99

    def test_images_of_a_patient_are_not_independent_evidence(self) -> None:
        rng = np.random.default_rng(0)
        right = np.repeat(rng.random(30) < 0.6, 10).astype(float)
        patients = np.repeat(np.arange(30), 10)
        statistics = lambda w: {"m": metrics.weighted_mean(right, w)}  # noqa: E731
        by_patient = np.diff(intervals(statistics, patients, samples=400, seed=0)["m"])
        by_image = np.diff(intervals(statistics, np.arange(300), samples=400, seed=0)["m"])
        assert by_patient / by_image == pytest.approx(math.sqrt(10), rel=0.2)

    def test_one_patient_has_no_interval(self) -> None:
        assert all(map(math.isnan, bootstrap_by_patient(np.mean, ["a", "a"], (np.arange(2.0),), samples=5, seed=0)))

    def test_undefined_samples_are_left_out(self) -> None:
        assert percentile_interval(np.array([np.nan, 1.0, 1.0])) == (1, 1)
        assert all(map(math.isnan, percentile_interval(np.array([np.nan]))))

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match=r"2 patients but arrays of \[3\]"):
            bootstrap_by_patient(np.mean, ["a", "b"], (np.arange(3),), seed=0)
        with pytest.raises(ValueError, match="samples is 0"):
            list(patient_weights(["a"], samples=0, seed=0))
