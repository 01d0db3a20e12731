"""Contact sheets: boxes at their place, pages that fill, what is unknown in red."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from knee.intake.crop.boxes import Box
from knee.intake.crop.contact import ContactSheets, contact_tile

GREY = np.full((100, 200), 7, np.uint8)


def colored(tile: np.ndarray) -> np.ndarray:
    """Rows and columns (n, 2) of the picture's pixels that are not grey."""
    return np.argwhere(np.ptp(tile[:320].astype(int), axis=2) > 60)


def test_a_box_is_drawn_at_its_place_in_the_padded_picture() -> None:
    # 200 × 100 pixels fill 320 × 160 of the tile, from row 80 on.
    tile = contact_tile("a.png", GREY, [(Box(top=10, left=50, height=80, width=100), "R 0.9")])
    assert tile.shape == (354, 320, 3)
    top, left = colored(tile).min(0)
    bottom, right = colored(tile).max(0)
    assert abs(top - (80 + 16)) <= 2
    assert abs(left - 80) <= 2
    assert abs(bottom - (80 + 144)) <= 2
    assert abs(right - 240) <= 2


def test_colors_tell_the_sides_and_the_unknown_apart() -> None:
    box = Box(top=10, left=50, height=80, width=100)
    shown = {label: tuple(np.median(tile[tuple(colored(tile).T)], 0)) for label in ("R", "L", "? 0.6")
             for tile in [contact_tile("a.png", GREY, [(box, label)])]}  # fmt: skip
    assert len(set(shown.values())) == 3
    assert shown["? 0.6"][0] > 200 > shown["? 0.6"][1]
    assert not len(colored(contact_tile("a.png", GREY, [])))


def test_pages_have_twenty_pictures_and_the_last_is_filled_up(tmp_path: Path) -> None:
    sheets = ContactSheets(tmp_path)
    for _ in range(21):
        sheets.add(contact_tile("a.png", GREY, []))
    sheets.close()
    sheets.close()
    assert [path.name for path in sheets.pages] == ["page_001.png", "page_002.png"]
    full, last = (cv2.imread(str(path)) for path in sheets.pages)
    assert full.shape == (5 * 354, 4 * 320, 3)
    assert last.shape == (354, 4 * 320, 3)
    assert last[:, 320:].max() == 0
