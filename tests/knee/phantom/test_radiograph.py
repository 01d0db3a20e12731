"""The radiograph phantom: grades, joint spaces and spurs agree with one another and with the pixels."""

import dataclasses

import numpy as np
import pytest

from knee.phantom import draw_radiograph
from knee.phantom.arthritis import JOINT_SPACE_MM, SPUR_MM, Arthritis, draw_arthritis, draw_build
from knee.phantom.fields import plane
from knee.phantom.radiograph import CONDYLE_MM, FILM_MM, condyles, place_femur, place_tibia, plateau

from .samples import knees

HEALTHY = draw_arthritis(np.random.default_rng(0), 0)
BUILD = draw_build(np.random.default_rng(0))


def worse_mm(knee: Arthritis) -> float:
    return knee.lateral_mm if knee.is_lateral else knee.medial_mm


def test_bit_for_bit_and_in_any_order() -> None:
    first = [draw_radiograph(seed=2, patient=p, side=side, size=64) for p in (0, 5) for side in ("L", "R")]
    again = [draw_radiograph(seed=2, patient=p, side=side, size=64) for p in (5, 0) for side in ("R", "L")]
    for one, other in zip(first, reversed(again), strict=True):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
        assert one.truth == other.truth


def test_joint_space_narrows_and_spurs_grow_with_the_grade() -> None:
    space = [np.mean([worse_mm(knee) for knee in knees(grade)]) for grade in range(5)]
    spurs = [np.mean([max(knee.spurs_mm) for knee in knees(grade)]) for grade in range(5)]
    dense = [np.mean([knee.sclerosis for knee in knees(grade)]) for grade in range(5)]
    assert np.all(np.diff(space) < -0.4)
    assert np.all(np.diff(spurs) > 0.4)
    assert np.all(np.diff(dense) > 0)


@pytest.mark.parametrize("grade", range(5))
def test_every_knee_keeps_to_the_definition(grade: int) -> None:
    for knee in knees(grade):
        low, high = JOINT_SPACE_MM[grade]
        assert low <= worse_mm(knee) <= high
        assert SPUR_MM[grade][0] <= max(knee.spurs_mm) <= SPUR_MM[grade][1]
        assert (knee.deformity_mm > 1.5) == (grade == 4)
        several = sum(spur > 1.2 for spur in knee.spurs_mm)
        assert several >= 2 if grade >= 3 else several <= 4
        if grade == 0:
            assert several == 0


@pytest.mark.parametrize("medial_mm, lateral_mm", [(5.0, 5.0), (1.0, 6.0), (4.0, 2.0)])
def test_the_drawn_gap_is_the_stated_joint_space(medial_mm: float, lateral_mm: float) -> None:
    knee = dataclasses.replace(HEALTHY, medial_mm=medial_mm, lateral_mm=lateral_mm)
    at = np.asarray([CONDYLE_MM, -CONDYLE_MM])
    gap = plateau(at, BUILD, knee) - condyles(at, BUILD, knee)
    assert gap == pytest.approx([medial_mm, lateral_mm], abs=0.35)


def test_a_spur_adds_bone_at_its_own_corner_only() -> None:
    page = plane(196, FILM_MM, turn=0.0, shift_mm=(0.0, 0.0), scale=1.0)
    bare = dataclasses.replace(HEALTHY, spurs_mm=(0.0, 0.0, 0.0, 0.0))
    spurred = dataclasses.replace(HEALTHY, spurs_mm=(0.0, 0.0, 6.0, 0.0))
    assert np.array_equal(place_femur(page, BUILD, bare)[0], place_femur(page, BUILD, spurred)[0])
    added = (place_tibia(page, BUILD, spurred)[0] < 0) & (place_tibia(page, BUILD, bare)[0] > 0.3)
    added &= np.abs(page.x) > 15  # the spines sharpen with any osteophyte
    assert added.any() and page.x[added].min() > 25
    assert page.x[added].max() == pytest.approx(BUILD.tibia_half - 1.5 + 6.0, abs=1.5)


def test_left_is_shown_mirrored_and_the_band_is_between_the_bones() -> None:
    for side in ("L", "R"):
        dark = []
        for number in range(30):
            film = draw_radiograph(seed=0, patient=number, side=side, size=48)
            assert film.image.shape == film.mask.shape == (48, 48)
            assert 0.03 < film.mask.mean() < 0.35
            dark.append(film.image[38:, :9].mean() - film.image[38:, -9:].mean())
        # The fibula brightens the lateral side: on the page's left in a right knee, on its right in a left one.
        assert np.mean(dark) > 0 if side == "R" else np.mean(dark) < 0


def test_a_negative_is_the_complement() -> None:
    plain = draw_radiograph(seed=0, patient=0, side="R", size=64)
    negative = draw_radiograph(seed=0, patient=0, side="R", size=64, negatives=1.0)
    assert negative.truth == dataclasses.replace(plain.truth, is_negative=True)
    assert np.abs(plain.image.astype(int) + negative.image - 255).max() <= 1
