"""Films of the phantom: repeatable, with knees where they are said to be."""

import numpy as np
import pytest

from knee.phantom.scenes import KINDS, draw_scene


def test_a_film_depends_only_on_its_number() -> None:
    first = draw_scene(seed=1, number=4, longest=120)
    draw_scene(seed=1, number=5, longest=120)
    again = draw_scene(seed=1, number=4, longest=120)
    assert np.array_equal(first.image, again.image)
    assert first[1:] == again[1:]


@pytest.mark.parametrize(("kind", "sides"), [("both", "RL"), ("whole", "RL"), ("none", "")])
def test_knees_and_sides_by_kind(kind: str, sides: str) -> None:
    for number in range(3):
        scene = draw_scene(seed=2, number=number, kind=kind, longest=150)  # type: ignore[arg-type]
        assert max(scene.image.shape) == 150
        assert "".join(knee.side for knee in scene.knees) == sides
        for knee in scene.knees:
            assert 0 < knee.x < scene.image.shape[1]
            assert 0 < knee.y < scene.image.shape[0]
            assert 60 < knee.width * scene.spacing_mm < 120


def test_kinds_all_occur() -> None:
    counts = {len(draw_scene(seed=3, number=number, longest=60).knees) for number in range(20)}
    assert counts == {0, 1, 2}
    assert len(KINDS) == 4
