"""Features of edges: invariants under scaling of grey values, inversion and flips."""

import numpy as np
import pytest

from knee.images.joint_features import CELL, CHANNELS, cells, flipped, window

IMAGE = np.random.default_rng(0).normal(100, 20, (36, 48)).astype(np.float32)


def test_shape_and_invariants() -> None:
    found = cells(IMAGE)
    assert found.shape == (36 // CELL, 48 // CELL, CHANNELS)
    assert np.allclose(cells(255 - IMAGE), found, atol=1e-3), "a negative has the same edges"
    assert np.allclose(cells(IMAGE * 7 + 30), found, atol=1e-2), "contrast does not matter"


def test_flipping_the_image_flips_the_features() -> None:
    assert np.allclose(cells(np.ascontiguousarray(IMAGE[:, ::-1])), flipped(cells(IMAGE)), atol=1e-3)
    assert np.array_equal(flipped(flipped(cells(IMAGE))), cells(IMAGE))


@pytest.mark.parametrize(("angle", "expected"), [(0, 1.0), (90, -1.0)])
def test_the_direction_of_an_edge(angle: int, expected: float) -> None:
    ramp = np.tile(np.arange(36, dtype=np.float32), (36, 1))
    found = cells(ramp if angle == 0 else np.ascontiguousarray(ramp.T))[4:-4, 4:-4]
    assert np.allclose(found[..., 1] / found[..., 0], expected, atol=1e-4)
    assert np.allclose(found[..., 2], 0, atol=1e-4)


def test_a_window_at_full_size_is_that_part_of_the_image() -> None:
    shape = (4, 4)
    part = IMAGE[6 : 6 + 4 * CELL, 9 : 9 + 4 * CELL]
    x, y = 9 + (4 * CELL - 1) / 2, 6 + (4 * CELL - 1) / 2
    assert np.allclose(window(IMAGE, x, y, 4 * CELL, shape, 4), cells(part), atol=1e-3)
