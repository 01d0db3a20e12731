"""Views: one geometry for student, teacher and mask, everything fixed by the seed, strengths that are what they say."""

from __future__ import annotations

import pickle
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from knee.data.views import PRESETS, TwoViews, Views, draw_seed, no_views, strong_views, views_from, weak_views

from .pictures import MOVED, SIZE, disk, gray, random_image


def same(first: TwoViews, second: TwoViews) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_building_the_pipelines_warns_of_nothing(preset: str) -> None:
    # albumentations only warns about arguments that it does not know.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Views(views_from(preset), SIZE)(random_image(), seed=0)
    assert [str(warning.message) for warning in caught] == []


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


def test_views_depend_only_on_the_seed() -> None:
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


def test_global_random_state_does_not_change() -> None:
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


def test_cutouts_are_none_to_the_count_each_as_likely() -> None:
    views = Views(replace(no_views(), cutout_count=1, cutout_size=0.25), SIZE)
    areas = np.array([(view == 0).mean() for seed in range(200) for view in views(gray(), seed=seed)[:2]])
    assert 0.4 < (areas == 0).mean() < 0.6
    assert areas.max() <= 0.25**2
    assert areas[areas > 0].min() >= (np.floor(0.125 * SIZE) / SIZE) ** 2
    # Drawn for each view by itself.
    both = areas.reshape(-1, 2) > 0
    assert 0.15 < (both[:, 0] & ~both[:, 1]).mean() < 0.35


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
