"""Views: one geometry for student, teacher and mask, everything fixed by the seed, strengths that are what they say."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from knee.data.views import (
    PRESETS,
    ImageArray,
    TwoViews,
    ViewConfig,
    Views,
    draw_seed,
    no_views,
    strong_views,
    views_from,
    weak_views,
)
from knee.errors import Faults, UserError

SIZE = 64
# Geometry alone, as far as the strong views go.
MOVED = replace(strong_views(), brightness=0, contrast=0, gamma=0, blur_pixels=0, noise=0, cutout_count=0)


def disk(row: float, column: float, radius: float = 8) -> ImageArray:
    """A filled disk: uint8 (SIZE, SIZE) in {0, 1}."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2, dtype=np.uint8)


def gray(value: int = 100) -> ImageArray:
    return np.full((SIZE, SIZE), value, np.uint8)


def random_image(seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def same(first: TwoViews, second: TwoViews) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_building_the_pipelines_warns_of_nothing(preset: str) -> None:
    # albumentations only warns about arguments that it does not know.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Views(views_from(preset), SIZE)(random_image(), seed=0)
    assert [str(warning.message) for warning in caught] == []


def test_a_configuration_is_read_without_albumentations() -> None:
    code = "import sys, knee.data.views as v; v.views_from('strong'); print('albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("seed", range(25))
def test_student_teacher_and_mask_share_the_geometry(seed: int) -> None:
    mask = disk(20, 40)
    student, teacher, moved, _ = Views(MOVED, SIZE)(mask * 200, mask, seed=seed)
    assert moved is not None
    assert np.array_equal(student, teacher)
    seen = student > 100
    # Bilinear and nearest warps differ on the rim alone.
    assert (seen & (moved > 0)).sum() / (seen | (moved > 0)).sum() > 0.9
    assert set(np.unique(moved)) <= {0, 1}


def test_masks_follow_through_photometric_changes_too() -> None:
    mask = disk(30, 25)
    views = Views(replace(strong_views(), cutout_count=0), SIZE)
    for seed in range(20):
        student, teacher, moved, _ = views(mask * 120 + 40, mask, seed=seed)
        assert moved is not None
        center = np.array(center_of_mass(moved))
        for view in (student, teacher):
            bright = view > (int(view.max()) + int(np.median(view))) / 2
            assert np.abs(np.array(center_of_mass(bright)) - center).max() < 1.5
        assert not np.array_equal(student, teacher)


def test_views_depend_on_the_seed_alone() -> None:
    views, other = Views(strong_views(), SIZE), Views(strong_views(), SIZE)
    image, mask = random_image(), disk(30, 30)
    first = views(image, mask, seed=5)
    np.random.seed(1)  # noqa: NPY002
    for seed in range(7):
        other(random_image(seed), seed=seed)
    again = other(image, mask, seed=5)
    assert same(first, again)
    assert not np.array_equal(first.student, views(image, mask, seed=6).student)
    assert same(first, pickle.loads(pickle.dumps(views))(image, mask, seed=5))


def test_global_random_state_is_left_alone() -> None:
    views = Views(strong_views(), SIZE)
    before = pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002
    views(random_image(), seed=1)
    assert pickle.dumps((np.random.get_state(), random.getstate())) == before  # noqa: NPY002


def test_a_mask_does_not_change_what_is_drawn() -> None:
    views = Views(strong_views(), SIZE)
    with_mask, without = views(random_image(), disk(9, 9), seed=3), views(random_image(), seed=3)
    assert without.mask is None
    assert np.array_equal(with_mask.student, without.student)
    assert np.array_equal(with_mask.teacher, without.teacher)


def test_flip_and_contrast_are_not_drawn_together() -> None:
    # Were each transform seeded alike, every flipped image would be among the darker or the brighter half.
    config = replace(no_views(), horizontal_flip=0.5, contrast=0.5)
    image = gray()
    image[:, : SIZE // 2] = 50
    views = Views(config, SIZE)
    flipped, brighter = [], []
    for seed in range(200):
        student = views(image, seed=seed).student
        flipped.append(student[0, 0] > student[0, -1])
        brighter.append(student.mean() > 75)
    assert 0.35 < np.mean(flipped) < 0.65
    assert abs(np.corrcoef(flipped, brighter)[0, 1]) < 0.25


def test_no_views_give_the_image_and_share_no_memory() -> None:
    image, mask = random_image(), disk(10, 10)
    image.flags.writeable = False
    student, teacher, moved, _ = Views(no_views(), SIZE)(image, mask, seed=0)
    assert moved is not None
    assert np.array_equal(student, image)
    assert np.array_equal(teacher, image)
    assert np.array_equal(moved, mask)
    arrays = [image, mask, student, teacher, moved]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_teacher_photometric_strengths() -> None:
    image = random_image()
    none = Views(replace(strong_views(), teacher_photometric="none"), SIZE)
    weak = Views(replace(strong_views(), teacher_photometric="weak"), SIZE)
    still = replace(MOVED, teacher_photometric="same")
    for seed in range(5):
        moved = Views(still, SIZE)(image, seed=seed).student
        assert np.array_equal(none(image, seed=seed).teacher, moved)
        student, teacher, *_ = weak(image, seed=seed)
        assert np.abs(teacher.astype(float) - moved).mean() < np.abs(student.astype(float) - moved).mean()


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


def test_cutouts_are_none_to_the_count_each_as_likely() -> None:
    views = Views(replace(no_views(), cutout_count=1, cutout_size=0.25), SIZE)
    areas = np.array([(view == 0).mean() for seed in range(200) for view in views(gray(), seed=seed)[:2]])
    assert 0.4 < (areas == 0).mean() < 0.6
    assert areas.max() <= 0.25**2
    assert areas[areas > 0].min() >= (np.floor(0.125 * SIZE) / SIZE) ** 2
    # Drawn for each view by itself.
    both = areas.reshape(-1, 2) > 0
    assert 0.15 < (both[:, 0] & ~both[:, 1]).mean() < 0.35


def test_values_out_of_range_are_reported_together() -> None:
    with pytest.raises(Faults) as caught:
        ViewConfig(rotate_degrees=-1, noise=2, cutout_count=1.5, teacher_photometric="strong")  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(caught.value.faults) == 4
    for part in ("rotate_degrees is -1", "from 0 to 180", "noise is 2", "a whole number", "same, weak, none"):
        assert part in message
    with pytest.raises(Faults, match="brightness is nan"):
        ViewConfig(brightness=float("nan"))
    with pytest.raises(Faults, match="contrast is 'a lot'"):
        views_from("weak", contrast="a lot")


def test_presets_with_changes() -> None:
    changed = views_from("strong", rotate_degrees=3.0)
    assert changed == replace(strong_views(), rotate_degrees=3.0)
    assert views_from("weak") == weak_views() == ViewConfig()
    strengths = [field.name for field in fields(ViewConfig) if field.name != "teacher_photometric"]
    assert all(getattr(strong_views(), name) >= getattr(weak_views(), name) for name in strengths)
    with pytest.raises(UserError, match="preset 'hard' is not known; give one of weak, strong, none"):
        views_from("hard")
    with pytest.raises(UserError, match="rotation not known; known are preset, horizontal_flip"):
        views_from("weak", rotation=3)


def test_another_size_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="views of size 32 got image"):
        Views(weak_views(), 32)(random_image(), seed=0)
    with pytest.raises(ValueError, match="mask"):
        Views(weak_views(), SIZE)(random_image(), np.zeros((8, 8), np.uint8), seed=0)


def test_draw_seeds_differ_and_stay_in_range() -> None:
    seeds = {
        draw_seed(seed, stream, position)
        for seed in range(3)
        for stream in ("labeled", "unlabeled")
        for position in range(500)
    }
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**60
