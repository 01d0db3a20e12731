"""Knees in films of the phantom: number, place, side, and what must not change them."""

from pathlib import Path

import numpy as np
import pytest

from experiments.knee_detector import edge_error
from knee.images import joints
from knee.images.joint_features import flipped
from knee.images.joints import find_knees, weights
from knee.phantom import draw_mr_slice, draw_radiograph
from knee.phantom.scenes import Scene, draw_scene

SEED = 77  # of no film that the weights were fitted to


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed=SEED, number=number, kind="both", longest=320) for number in range(6)]


def test_both_knees_are_found_within_a_tenth_of_the_box(scenes: list[Scene]) -> None:
    for scene in scenes:
        found = find_knees(scene.image)
        assert [one.side for one in found] == [knee.side for knee in scene.knees] == ["R", "L"]
        assert all(edge_error(one, knee) < 0.1 for one, knee in zip(found, scene.knees, strict=True))
        assert all(min(one.confidence, one.side_confidence) > 0.5 for one in found)


def test_a_flipped_film_has_flipped_places_and_sides() -> None:
    scene = draw_scene(seed=SEED, number=0, kind="single", longest=320)
    (one,), (other,) = find_knees(scene.image), find_knees(scene.image[:, ::-1])
    assert one.x + other.x == pytest.approx(scene.image.shape[1] - 1, abs=0.03 * one.width)
    assert one.y == pytest.approx(other.y, abs=0.03 * one.width)
    assert {one.side, other.side} == {"L", "R"}


def test_a_negative_and_other_grey_values_change_nothing(scenes: list[Scene]) -> None:
    image = scenes[0].image
    expected = find_knees(image)
    for other in (255 - image, image.astype(np.uint16) * 100 + 500):
        for one, same in zip(find_knees(other), expected, strict=True):
            assert (one.x, one.y, one.width) == pytest.approx((same.x, same.y, same.width), rel=1e-2)


def test_coordinates_are_those_of_the_image_at_any_resolution(scenes: list[Scene]) -> None:
    large = scenes[1].image.repeat(4, axis=0).repeat(4, axis=1)
    for one, small in zip(find_knees(large), find_knees(scenes[1].image), strict=True):
        assert (one.x + 0.5, one.y + 0.5) == pytest.approx(((small.x + 0.5) * 4, (small.y + 0.5) * 4), rel=0.03)
        assert one.width == pytest.approx(4 * small.width, rel=0.08)


@pytest.mark.parametrize("side", ["L", "R"])
def test_a_cropped_film_shows_one_knee(side: str) -> None:
    counts = [
        len(find_knees(draw_radiograph(seed=SEED, patient=patient, side=side, size=160).image)) for patient in range(8)
    ]
    assert counts == [1] * 8


def test_slices_noise_and_plain_images_show_no_pair() -> None:
    rng = np.random.default_rng(0)
    images = [draw_mr_slice(seed=SEED, patient=patient, index=4, size=96).image for patient in range(4)]
    images += [rng.integers(0, 256, shape, np.uint8) for shape in ((64, 64), (100, 300), (8, 8), (1, 40))]
    assert all(len(find_knees(image)) < 2 for image in images)
    assert find_knees(np.zeros((50, 80))) == ()


def test_the_filter_cannot_tell_sides_apart_and_the_weights_are_small() -> None:
    fitted = weights()
    assert np.allclose(fitted.filter, flipped(fitted.filter), atol=2e-3)
    assert Path(joints.__file__).with_suffix(".npz").stat().st_size < 100_000
