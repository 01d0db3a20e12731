"""Both knees in one picture, on phantom radiographs."""

from __future__ import annotations

import numpy as np
import pytest

from knee.images.negatives import mean_thumbnail, thumbnail
from knee.images.two_knees import shows_two


@pytest.fixture(scope="module")
def knees() -> list[np.ndarray]:
    """Blurred knees of different shape: bone above and below a gap, soft tissue at the sides."""
    rng, found = np.random.default_rng(0), []
    rows, columns = np.mgrid[0:96, 0:96] / 95
    for _ in range(20):
        gap, width, lean = rng.uniform(0.46, 0.54), rng.uniform(0.28, 0.36), rng.uniform(-0.03, 0.03)
        bone = np.abs(columns - 0.5 - lean * rows) < width
        picture = 90 * bone * (np.abs(rows - gap) > 0.02) + 60 * np.exp(-(((columns - 0.5) / 0.4) ** 2))
        found.append(picture + rng.normal(0, 4, picture.shape))
    return found


def test_two_knees_side_by_side_are_seen_and_one_is_not(knees: list[np.ndarray]) -> None:
    mean = mean_thumbnail(map(thumbnail, knees[:10]))
    assert not any(shows_two(knee, mean) for knee in knees[10:])
    for left, right in zip(knees[10:15], knees[15:], strict=True):
        assert shows_two(np.hstack([left, right[:, ::-1]]), mean)
        assert not shows_two(np.vstack([left, right]), mean)


def test_noise_flat_and_tiny_images_are_not_two_knees(knees: list[np.ndarray]) -> None:
    mean = mean_thumbnail(map(thumbnail, knees))
    assert not shows_two(np.random.default_rng(1).random((96, 96)), mean)
    assert not shows_two(np.zeros((8, 8)), mean)
    assert not shows_two(np.zeros((8, 1)), mean)
