from __future__ import annotations

import numpy as np
import pytest

from knee.evaluation.colors import difference_colors, heat_colors, heat_cover, paint
from knee.evaluation.overlays import overlay


def test_attention_looks_the_same_in_every_picture():
    x = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (400, 1))
    image = np.tile(np.arange(400)[:, None] % 256, (1, 400)).astype(np.uint8)
    assert np.abs(paint(image, x).astype(int) - overlay(image, x)).max() <= 4


def test_the_scale_grows_lighter_and_opaque_and_is_clear_at_zero():
    x = np.linspace(0, 1, 256, dtype=np.float32)
    lightness = heat_colors().astype(int) @ [299, 587, 114]
    assert (np.diff(lightness) >= -600).all() and lightness[-1] > lightness[0] + 80_000
    cover = heat_cover(x)
    assert cover[0] == 0 and cover[-1] == 1 and (np.diff(cover) > 0).all()
    assert (cover[1:-1] < x[1:-1]).all(), "faint attention is covered by less than its share"
    painted = paint(np.full((1, 256), 100, np.uint8), x[None], opacity=0.5)[0].astype(int)
    assert (painted[0] == 100).all()
    assert painted[-1] == pytest.approx(0.5 * 100 + 0.5 * heat_colors()[-1], abs=2)


def test_the_difference_is_white_where_there_is_none():
    colors = difference_colors().astype(int)
    assert colors[127:129].min() > 235
    assert colors[0, 2] > colors[0, 0] and colors[-1, 0] > colors[-1, 2]
