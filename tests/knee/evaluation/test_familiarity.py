"""Mahalanobis distance against a plain second implementation, and the threshold's share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from scipy.stats import binom

from knee.evaluation.familiarity import THUMBNAIL, Familiarity, features, fit_familiarity, passing_rank


def drawn(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Correlated features with another scale and mean in every dimension."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimensions)) @ rng.normal(size=(dimensions, dimensions)) + 100 * rng.random(
        dimensions
    )


@pytest.mark.parametrize(("count", "dimensions", "classes"), [(300, 6, 3), (40, 3, 1), (12, 20, 2)])
def test_the_distance_is_that_from_the_nearest_class(count: int, dimensions: int, classes: int) -> None:
    training, places = drawn(count, dimensions, 0), np.arange(count) % classes
    new = drawn(9, dimensions, 1)
    found = fit_familiarity(training, places, training).distance(new)
    scale = training.std(0)
    means = [training[places == one].mean(0) / scale for one in range(classes)]
    within = np.concatenate([training[places == one] / scale - means[one] for one in range(classes)])
    covariance = within.T @ within / count
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / dimensions * np.eye(dimensions)
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(row / scale, mean, inverse) for mean in means) for row in new]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_units_and_constant_features_do_not_matter() -> None:
    training, places, new = drawn(100, 4, 0), np.arange(100) % 2, drawn(9, 4, 1)
    plain = fit_familiarity(training, places, training).distance(new)
    scaled = fit_familiarity(training * 1000 - 7, places, training * 1000 - 7).distance(new * 1000 - 7)
    np.testing.assert_allclose(plain, scaled, rtol=1e-3)
    constant = fit_familiarity(np.full((5, 3), 2.0), np.zeros(5, np.int64), np.full((2, 3), 2.0))
    assert np.isfinite(constant.distance(np.array([[2.0, 2.0, 2.0], [2.0, 2.0, 9.0]]))).all()
    assert constant.distance(np.array([[2.0, 2.0, 9.0]]))[0] > constant.threshold


@pytest.mark.parametrize("count", [59, 100, 413, 826, 5000])
def test_the_rank_is_the_smallest_that_lets_95_percent_pass_with_95_percent_confidence(count: int) -> None:
    rank = passing_rank(count)
    # The share below the k-th of n distances is Beta(k, n + 1 - k): at least 0.95 with the probability P(Bin(n, 0.95) < k).
    assert binom.cdf(rank - 1, count, 0.95) >= 0.95 > binom.cdf(rank - 2, count, 0.95)
    assert rank / count >= 0.95


def test_the_promised_share_of_further_images_passes() -> None:
    rng, kept = np.random.default_rng(5), []
    for _ in range(400):
        validation, further = np.sort(rng.random(400)), rng.random(4000)
        limit = validation[passing_rank(400) - 1]
        kept.append((further <= limit).mean())
    assert np.mean(np.array(kept) >= 0.95) == pytest.approx(0.95, abs=0.04)


def test_familiarity_is_the_share_of_validation_images_at_least_as_far() -> None:
    known = Familiarity(
        np.zeros(1, np.float32),
        np.ones((1, 1), np.float32),
        np.zeros((1, 1), np.float32),
        np.array([1, 2, 2, 4], np.float32),
    )
    assert known.share(np.array([0.5, 1.0, 2.0, 3.0, 9.0])).tolist() == [1.0, 1.0, 0.75, 0.25, 0.0]
    assert known.threshold == 4.0
    np.testing.assert_allclose(known.distance(np.array([[-3.0], [0.0]])), [3.0, 0.0])


def test_features_hold_a_thumbnail() -> None:
    images = torch.rand(2, 1, 64, 64)
    found = features(torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16), images)
    assert found.shape == (2, 1 + THUMBNAIL**2) and found.dtype == np.float32
    assert found[:, 0].tolist() == [1.0, 2.0]
    np.testing.assert_allclose(found[1, 1], images[1, 0, :4, :4].mean(), rtol=1e-5)
