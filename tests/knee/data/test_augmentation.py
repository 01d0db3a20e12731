"""Strengths of the augmentation: limits are reached and never exceeded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import center_of_mass

from knee.data.views import ViewConfig, Views, no_views

from .pictures import SIZE, disk, gray


def test_rotation_and_shift_stay_within_their_limits_and_reach_them() -> None:
    middle = (SIZE - 1) / 2
    image = disk(middle, middle, 6) * 255
    views = Views(replace(no_views(), translate=0.1), SIZE)
    shifts = np.array([center_of_mass(views(image, seed=seed).student) for seed in range(200)]) - middle
    assert 0.9 * 0.1 * SIZE < np.abs(shifts).max() < 1.05 * 0.1 * SIZE
    arm = disk(middle, middle + 24, 5) * 255
    views = Views(replace(no_views(), rotate_degrees=20), SIZE)
    ends = np.array([center_of_mass(views(arm, seed=seed).student) for seed in range(200)]) - middle
    angles = np.degrees(np.arctan2(ends[:, 0], ends[:, 1]))
    assert 18 < np.abs(angles).max() < 20.5
    assert np.allclose(np.hypot(*ends.T), 24, atol=0.5)


def test_scale_stays_within_its_limits() -> None:
    image = disk((SIZE - 1) / 2, (SIZE - 1) / 2, 12) * 255
    views = Views(replace(no_views(), zoom_out=0.2, zoom_in=0.5), SIZE)
    scales = [np.sqrt(views(image, seed=seed).student.sum() / image.sum()) for seed in range(200)]
    assert 0.79 < min(scales) < 0.83
    assert 1.46 < max(scales) < 1.52


def test_noise_has_its_standard_deviation_and_no_bias() -> None:
    views = Views(replace(no_views(), noise=0.1), SIZE)
    drawn = np.array([views(gray(), seed=seed)[:2] for seed in range(100)], dtype=float) - 100
    deviations = drawn.std(axis=(2, 3)).ravel()
    # Uniform between 0 and a tenth of the range.
    assert deviations.max() < 1.05 * 25.5
    assert 0.4 * 25.5 < deviations.mean() < 0.6 * 25.5
    assert abs(drawn.mean()) < 0.1
    pairs = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in drawn if a.std() > 1 and b.std() > 1]
    assert np.abs(pairs).max() < 0.08


def test_brightness_contrast_gamma_and_blur_do_what_they_say() -> None:
    def means(config: ViewConfig, value: int = 100) -> list[float]:
        views = Views(config, SIZE)
        return [float(views(gray(value), seed=seed).student.mean()) for seed in range(150)]

    brightness = means(replace(no_views(), brightness=0.1))
    assert 100 - 26 <= min(brightness) < 100 - 23
    assert 100 + 23 < max(brightness) <= 100 + 26
    contrast = means(replace(no_views(), contrast=0.5))
    assert 50 <= min(contrast) < 54
    assert 146 < max(contrast) <= 150
    gamma = means(replace(no_views(), gamma=0.5), 64)
    assert 255 * (64 / 255) ** 1.5 - 1 < min(gamma) < 64 < max(gamma) < 255 * (64 / 255) ** 0.5 + 1
    edge = gray(0)
    edge[:, SIZE // 2 :] = 200
    blurred = Views(replace(no_views(), blur_pixels=3), SIZE)(edge, seed=0).student
    assert 0 < blurred[SIZE // 2, SIZE // 2] < 200
    assert abs(float(blurred.mean()) - 100) < 2
