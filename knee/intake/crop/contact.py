"""Contact sheets: every image with its boxes and sides, to check by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from knee.images.geometry import prepare
from knee.images.read import write_png
from knee.intake.crop.boxes import Box

_TILE, _CAPTION = 320, 34
_COLUMNS, _ROWS = 4, 5
_COLORS = {"R": (255, 210, 0), "L": (0, 220, 255), "": (255, 70, 70)}
"""By side; red where it is unknown or nothing was found."""


@dataclass
class ContactSheets:
    """Pages of 20 images, written as they fill."""

    folder: Path
    pages: list[Path] = field(default_factory=list)
    _tiles: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, tile: NDArray[np.uint8]) -> None:
        """Add a picture of ``contact_tile``."""
        self._tiles.append(tile)
        if len(self._tiles) == _COLUMNS * _ROWS:
            self.close()

    def close(self) -> None:
        """Write the page begun. Raises UserError if that fails."""
        if not self._tiles:
            return
        empty = np.zeros_like(self._tiles[0])
        tiles = [*self._tiles, *[empty] * (-len(self._tiles) % _COLUMNS)]
        rows = [np.hstack(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
        path = self.folder / f"page_{len(self.pages) + 1:03d}.png"
        write_png(path, np.vstack(rows))
        self.pages.append(path)
        self._tiles = []


def contact_tile(name: str, values: NDArray[Any], boxes: Sequence[tuple[Box, str]]) -> NDArray[np.uint8]:
    """An image (H, W) with its boxes, each with a label that starts with the side, if known; RGB."""
    grey, geometry = prepare(values, _TILE)
    tile = np.zeros((_TILE + _CAPTION, _TILE, 3), np.uint8)
    tile[:_TILE] = grey[..., None]
    for box, label in boxes:
        corner = [(box.left - geometry.left) * geometry.scale, (box.top - geometry.top) * geometry.scale]
        far = [corner[0] + box.width * geometry.scale, corner[1] + box.height * geometry.scale]
        color = _COLORS.get(label[:1], _COLORS[""])
        cv2.rectangle(tile, [round(at) for at in corner], [round(at) - 1 for at in far], color, 2)
    picture = Image.fromarray(tile)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    shown = name if len(name) <= 44 else f"…{name[-43:]}"
    draw.text((4, _TILE + 1), shown, fill=(255, 255, 255), font=font)
    labels = "   ".join(label for _, label in boxes) or "no knee found"
    draw.text((4, _TILE + 17), labels, fill=(255, 255, 255) if boxes else _COLORS[""], font=font)
    return np.asarray(picture, np.uint8)
