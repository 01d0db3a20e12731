"""Negatives are told from positives by the mean image alone."""

import numpy as np

from knee.images.read import looks_inverted, mean_thumbnail, thumbnail


def synthetic_knee(rng):
    grid = np.mgrid[:60, :60] / 60 - 0.5 - rng.normal(0, 0.02, (2, 1, 1))
    bones = np.exp(-(grid[1] ** 2) / 0.05) * (np.abs(grid[0]) > 0.04)
    return bones * rng.uniform(50, 150) + rng.normal(0, 5, (60, 60)) + rng.uniform(20, 90)


def test_negatives_are_found():
    rng = np.random.default_rng(1)
    images = [synthetic_knee(rng) for _ in range(80)]
    negative = rng.random(80) < 0.3
    shown = [255 - image if flag else image for image, flag in zip(images, negative, strict=True)]
    template = mean_thumbnail(thumbnail(image) for image in shown)
    assert [looks_inverted(image, template) for image in shown] == negative.tolist()
    assert template.shape == (32, 32)
    assert abs(float(template.mean())) < 1e-5
    assert not looks_inverted(np.full((9, 9), 3.0), template)
    # Brightness and contrast make no difference.
    np.testing.assert_allclose(thumbnail(shown[0] * 3 + 4), thumbnail(shown[0]), atol=1e-4)
