"""Fitting of the knee detector: regressions with known answers, and films with knees where they were."""

import numpy as np
import pytest

from experiments.knee_detector import balanced, cropped, edge_error, is_other, log_odds, mounted, ridge
from knee.images.joints import KneeBox
from knee.phantom.scenes import SceneKnee

RNG = np.random.default_rng(0)


def test_ridge_is_least_squares_without_a_penalty_and_the_mean_with_a_huge_one() -> None:
    features, true = RNG.normal(size=(200, 3)), np.array([[1.0], [-2.0], [0.5]])
    targets = features @ true + 4
    solved, constant = ridge(features, targets, 1e-9)
    assert np.allclose(solved, true, atol=1e-4)
    assert constant == pytest.approx(4, abs=1e-4)
    solved, constant = ridge(features, targets, 1e9)
    assert np.allclose(solved, 0, atol=1e-6)
    assert constant == pytest.approx(targets.mean(), abs=1e-4)


def test_balanced_weights_and_log_odds() -> None:
    labels = np.array([1, 1, 1, -1])
    weights = balanced(labels)
    assert weights[labels > 0].sum() == weights[labels < 0].sum() == 1
    values = RNG.uniform(-1, 1, 20_000)
    drawn = np.where(RNG.random(20_000) < 1 / (1 + np.exp(-5 * values)), 1, -1)
    assert log_odds(values, drawn) == pytest.approx(5, abs=0.5)


def test_edges_are_compared_with_the_side_of_the_box() -> None:
    knee = SceneKnee(side="R", x=100, y=50, width=40, grade=0)  # box: 70 pixels
    assert edge_error(KneeBox(100, 50, 40, 1, 1), knee) == 0
    assert edge_error(KneeBox(107, 48, 40, 1, 1), knee) == pytest.approx(0.1)
    assert edge_error(KneeBox(100, 50, 48, 1, 1), knee) == pytest.approx(0.1)


def test_crops_and_canvases_move_their_knees_with_them() -> None:
    image = np.zeros((200, 300), np.float32)
    image[120, 80] = 1000
    part, knees = cropped((image, [(80.0, 120.0, 60.0, "L")]), RNG)
    assert part[round(knees[0][1]), round(knees[0][0])] == 1000
    canvas, both = mounted([(part, knees), (part, knees)], RNG)
    assert [canvas[round(y), round(x)] for x, y, _, _ in both] == [1000, 1000]
    assert not is_other(both[0][0] + 5, both[0][1], 60, (canvas, both), near=0.3, size=0.3)
    assert is_other(both[0][0] + 25, both[0][1], 60, (canvas, both), near=0.3, size=0.3)
