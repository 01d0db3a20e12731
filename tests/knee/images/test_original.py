"""The original on display: crop, padding and mirroring undone, whatever the size."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from knee.errors import UserError
from knee.images.original import MOST_PX, Source, prepared_original, read_original, shown_original
from knee.images.read import prepare

SIZE = 112


def _spot(shape: tuple[int, int], row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (40 + 200 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * radius**2))).astype(np.uint8)


def _peak(values: np.ndarray) -> np.ndarray:
    weights = np.where(values > 0.5 * values.max(), values.astype(float), 0)
    return np.array([(axis * weights).sum() for axis in np.indices(values.shape)]) / weights.sum()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("box", [None, (100, 150, 500, 420)])
@pytest.mark.parametrize("shape", [(1000, 700), (700, 1000), (640, 640), (1500, 1300)])
def test_a_map_made_of_the_square_lies_where_the_image_is(tmp_path, shape, box, mirror):
    """The square as its own map: its bright spot must come back to the spot of the original, shown whole or shrunk."""
    values = _spot(shape, 320, 260, 30)
    square, geometry = prepare(values, SIZE, mirror=mirror, box=box)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    original = read_original(Source(tmp_path / "a.png", geometry))
    assert original.size == shape and np.array_equal(original.pixels, values)
    for shown in (original, original.shrunk(), original.shrunk(500)):
        scale = shown.pixels.shape[0] / shape[0]
        found = shown.place(square / 255)
        assert found.shape == shown.pixels.shape and found.min() >= 0 and found.max() <= 1
        drawn = _peak(shown.pixels - 40.0)
        assert _peak(found) == pytest.approx(drawn, abs=max(2, 5 * scale))
    assert max(original.shrunk().pixels.shape) == min(max(shape), MOST_PX)


@pytest.mark.parametrize("mirror", [False, True])
def test_what_the_networks_did_not_see_has_no_map_and_padding_is_gone(tmp_path, mirror):
    cv2.imwrite(str(tmp_path / "a.png"), _spot((300, 200), 150, 90, 20))
    _, geometry = prepare(np.ones((300, 200), np.float32), SIZE, box=(0, 120, 80, 80), mirror=mirror)
    found = read_original(Source(tmp_path / "a.png", geometry)).place(np.ones((SIZE, SIZE)))
    assert found.shape == (300, 200)
    assert (found[:80, 120:] == 1).all() and found.sum() == 80 * 80


def test_eight_bits_are_shown_as_they_are_and_begin_with_the_networks_window(tmp_path):
    values = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    cv2.imwrite(str(tmp_path / "a.png"), values)
    for inverted in (False, True):
        square, geometry = prepare(values, 256, percentiles=(10, 80), invert=inverted)
        original = read_original(Source(tmp_path / "a.png", geometry, inverted, (10, 80)))
        assert np.array_equal(original.pixels, 255 - values if inverted else values)
        assert np.abs(original.grey.astype(int) - square).max() <= 1


def test_of_more_bits_the_window_leaves_room_on_both_sides(tmp_path):
    values = np.tile(np.linspace(0, 40_000, 400).astype(np.uint16), (300, 1))
    values[:, 0] = 65_000  # a metal marker
    cv2.imwrite(str(tmp_path / "a.png"), values)
    square, geometry = prepare(values, 400, percentiles=(20, 80))
    original = read_original(Source(tmp_path / "a.png", geometry, False, (20, 80)))
    black, white = original.window
    assert 30 < black < white < 225 and white - black == pytest.approx(255 / 1.5, abs=2)
    assert np.abs(original.grey.astype(int) - square[50:350]).max() <= 2
    assert len(np.unique(original.pixels)) > 230


def test_an_image_of_one_value_is_shown(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 30), 900, np.uint16))
    _, geometry = prepare(np.zeros((20, 30), np.float32), 32)
    assert read_original(Source(tmp_path / "a.png", geometry)).grey.shape == (20, 30)


def test_a_file_that_changed_or_is_gone_is_replaced_by_the_square_and_said(tmp_path):
    values = _spot((300, 200), 150, 60, 20)
    square, geometry = prepare(values, SIZE, mirror=True)
    source = Source(tmp_path / "a.png", geometry)
    for content in (None, values[:200]):
        if content is not None:
            cv2.imwrite(str(tmp_path / "a.png"), content)
        with pytest.raises(UserError):
            read_original(source)
        shown = shown_original(source, square)
        assert np.array_equal(shown.pixels, square[:, ::-1]), "in its own orientation"
        assert np.array_equal(shown.place(square / 255), np.float32(square[:, ::-1] / 255))
        assert shown.note == "original not readable; shown is the network’s input of 112 × 112 px"
    assert "200 × 200 pixels now" in shown_original(source, square).problem


def test_only_small_originals_have_a_note():
    square = np.zeros((200, 200), np.uint8)
    readable = replace(prepared_original(square, None, "gone"), problem="")
    assert readable.note == "small original: 200 × 200 px"
    assert replace(readable, size=(400, 512)).note == ""
