"""Overlays of attention on the image. One fixed scale is used everywhere, so that pictures can be compared.

Color and opacity both grow with x, so regions without attention stay unchanged. The solid contour is where
f = σ(ω(x − σ₀)) crosses 0.5; the dashed one is the edge of the cartilage mask. All results are uint8 RGB arrays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from knee.evaluation.colors import OPACITY, paint

Rgb = NDArray[np.uint8]
Points = NDArray[np.int32]

LEAST_PX = 384
"""Smaller images are enlarged by a whole factor until their longer side has at least this many pixels."""
_CONTOUR = (255, 255, 255)
_CARTILAGE = (70, 220, 255)
_GROUND = (16, 16, 18)
_INK = (240, 240, 240)
_FAINT = (175, 175, 180)
_GAP = 8


class Look(NamedTuple):
    """One network's attention on one image, with the text above it."""

    attention: NDArray[Any]
    """x, or an evidence map: (H, W) in [0, 1]."""
    mask: NDArray[Any] | None
    """f, or any map that crosses 0.5 where f does: (H, W) in [0, 1]; None to draw no contour."""
    text: str
    """The network's prediction, as text by `verdict`."""


def overlay(
    image: NDArray[Any],
    attention: NDArray[Any],
    *,
    contour: NDArray[Any] | None = None,
    cartilage: NDArray[Any] | None = None,
    opacity: float = OPACITY,
    factor: int | None = None,
) -> Rgb:
    """The image with x in color, the contour of f at 0.5, and the edge of the cartilage mask as a dashed line.

    image uint8 (H, W); attention x, contour f and cartilage (H, W) in [0, 1]. Returns RGB (H', W', 3), enlarged by a whole
    ``factor``: by default the one that takes the longer side to at least ``LEAST_PX``. ValueError for other shapes or ranges.
    """
    _check(image, {"attention": attention, "contour": contour, "cartilage": cartilage})
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity {opacity} must be in [0, 1]")
    grey = enlarge(image, factor)
    size = (grey.shape[1], grey.shape[0])
    x = cv2.resize(np.asarray(attention, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR)
    picture = paint(grey, x, opacity=opacity)
    if cartilage is not None:
        _trace(picture, cartilage, _CARTILAGE, dashed=True)
    if contour is not None:
        _trace(picture, contour, _CONTOUR, dashed=False)
    return picture


def contour_of(x: NDArray[Any], threshold: float) -> NDArray[np.float32]:
    """A smooth map that crosses 0.5 where f = σ(ω(x − σ₀)) does: x (H, W) and σ₀ → (H, W) in [0, 1]."""
    return np.asarray(np.clip(np.asarray(x, np.float32) - threshold + 0.5, 0, 1), np.float32)


def enlarge(image: NDArray[Any], factor: int | None = None) -> NDArray[np.uint8]:
    """The gray image, enlarged smoothly by the factor that `overlay` uses: uint8 (H, W) → uint8 (H', W')."""
    factor = factor or -(-LEAST_PX // max(image.shape))
    if factor <= 1:
        return np.asarray(image, dtype=np.uint8)
    larger: NDArray[np.uint8] = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return larger


def verdict(network: str, grade: int, probabilities: NDArray[Any], names: Sequence[str]) -> str:
    """A network's grade for one image as text, with its probability out of all (K,).

    >>> verdict("teacher", 2, np.array([0.1, 0.2, 0.7]), ("none", "doubtful", "mild"))
    'teacher: 2 mild (p 0.70)'
    """
    return f"{network}: {grade} {names[grade]} (p {probabilities[grade]:.2f})"


def case_panel(
    image: NDArray[Any],
    looks: Sequence[Look],
    *,
    caption: str,
    cartilage: NDArray[Any] | None = None,
    legend: bool = True,
) -> Rgb:
    """The image and each network's overlay side by side, each with its text, a caption above and the legend below.

    image uint8 (H, W); cartilage (H, W) in {0, 1}. The caption may be shared, so it names the case by its hash, never the
    patient.
    """
    plain = cv2.cvtColor(enlarge(image), cv2.COLOR_GRAY2RGB)
    pictures = [("image", plain)]
    for look in looks:
        drawn = overlay(image, look.attention, contour=look.mask, cartilage=cartilage)
        pictures.append((look.text, drawn))
    titled = [np.vstack([_strip(text, picture.shape[1]), picture]) for text, picture in pictures]
    panel = _side_by_side(titled)
    rows = [_strip(caption, panel.shape[1], faint=True), panel]
    if legend:
        rows.append(legend_strip(panel.shape[1], cartilage=cartilage is not None))
    return np.vstack(rows)


def contact_sheet(panels: Sequence[Rgb], *, columns: int = 4, cartilage: bool = False) -> Rgb:
    """Panels or overlays in a grid, row by row, above one legend. Smaller ones are padded to the size of the largest.

    ``cartilage``: whether the pictures show cartilage masks. ValueError if there are no panels.
    """
    if not panels or columns < 1:
        raise ValueError(f"{len(panels)} panels in {columns} columns; a sheet needs at least one of each")
    columns = min(columns, len(panels))
    height, width = (max(panel.shape[axis] for panel in panels) for axis in (0, 1))
    padded = [_pad(panel, height, width) for panel in panels]
    padded += [_ground(height, width)] * (-len(panels) % columns)
    rows = [_side_by_side(padded[start : start + columns], gap=3 * _GAP) for start in range(0, len(padded), columns)]
    between = _ground(2 * _GAP, rows[0].shape[1])
    sheet = np.vstack([part for row in rows for part in (row, between)][:-1])
    return np.vstack([sheet, legend_strip(sheet.shape[1], cartilage=cartilage)])


@cache
def legend_strip(width: int, *, cartilage: bool, evidence: bool = False) -> Rgb:
    """The legend: the color scale on medium gray, the lines, and the research notice. (h, width, 3).

    One row of 30 px, or two if ``width`` is small. ``evidence``: of an evidence map, which has no contour.
    """
    narrow = width < 740
    canvas = Image.fromarray(_ground(56 if narrow else 30, width))
    draw, font = ImageDraw.Draw(canvas), _font(13)
    bar = np.tile(np.linspace(0, 1, 110, dtype=np.float32), (12, 1))
    middle, at = 15, _write(draw, 10, 15, "evidence 0" if evidence else "attention 0", font) + 6
    canvas.paste(Image.fromarray(paint(np.full(bar.shape, 96, np.uint8), bar)), (at, middle - 6))
    at = _write(draw, at + 116, middle, "1", font) + 22
    if narrow:
        _write(draw, at, middle, "research use only", font, fill=_FAINT)
        middle, at = 41, 10
    if not evidence:
        draw.line([(at, middle), (at + 26, middle)], fill=_CONTOUR, width=2)
        at = _write(draw, at + 32, middle, "attention contour (f = 0.5)", font) + 22
    if cartilage:
        for dash in range(3):
            draw.line([(at + 10 * dash, middle), (at + 10 * dash + 6, middle)], fill=_CARTILAGE, width=2)
        at = _write(draw, at + 32, middle, "cartilage mask", font) + 22
    if not narrow:
        _write(draw, at, middle, "research use only", font, fill=_FAINT)
    return np.asarray(canvas)


def _trace(picture: Rgb, area: NDArray[Any], color: tuple[int, int, int], *, dashed: bool) -> None:
    """Draws the edge of {area > 0.5} into the picture, on a dark line so that it is visible on bright tissue too."""
    height, width = picture.shape[:2]
    larger = cv2.resize(cv2.convertScaleAbs(np.asarray(area, dtype=np.float32), alpha=255), (width, height))
    factor = width / area.shape[1]
    if factor > 1:
        # Smooth the steps that enlarging leaves.
        larger = cv2.GaussianBlur(larger, (0, 0), sigmaX=factor / 2)
    thick = max(1, round(max(height, width) / 340))
    # Areas that reach the border of the picture are not closed along it: those lines fall into the margin outside.
    margin = 2 * thick + 2
    framed = cv2.copyMakeBorder(larger, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    inside = cv2.compare(framed, 127, cv2.CMP_GT)
    edges, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(-margin, -margin))
    # Use fewer points than pixels, since the time to draw antialiased lines grows with the number of points.
    lines = [part for edge in edges for part in (_dashes(edge, 5 * thick) if dashed else [_fewer(edge)])]
    cv2.polylines(picture, lines, not dashed, (0, 0, 0), thick + 2, cv2.LINE_AA)
    cv2.polylines(picture, lines, not dashed, color, thick, cv2.LINE_AA)


def _fewer(edge: Points) -> Points:
    fewer: Points = cv2.approxPolyDP(edge, 0.6, True)
    return fewer


def _dashes(edge: Points, length: int) -> list[Points]:
    return [edge[start : start + length : 3].copy() for start in range(0, len(edge), 2 * length)]


def notes_strip(lines: Sequence[str], width: int) -> Rgb:
    """Sentences to put below a picture, each starting a new line and wrapped to the width: (h, width, 3)."""
    font, wrapped = _font(13), []
    for line in lines:
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if current and font.getlength(longer) > width - 20:
                wrapped.append(current)
                longer = word
            current = longer
        wrapped.append(current)
    canvas = Image.fromarray(_ground(20 * len(wrapped) + 10, width))
    for number, text in enumerate(wrapped):
        _write(ImageDraw.Draw(canvas), 10, 15 + 20 * number, text, font)
    return np.asarray(canvas)


def _strip(text: str, width: int, *, faint: bool = False) -> Rgb:
    canvas = Image.fromarray(_ground(26, width))
    font = _font(15)
    if font.getlength(text) > width - 12:
        fits = bisect_right(range(len(text)), width - 28, key=lambda length: int(font.getlength(text[:length])))
        text = text[: max(fits - 1, 0)].rstrip() + "…"
    _write(ImageDraw.Draw(canvas), 6, 13, text, font, fill=_FAINT if faint else _INK)
    return np.asarray(canvas)


def _write(
    draw: ImageDraw.ImageDraw,
    left: int,
    middle: int,
    text: str,
    font: ImageFont.FreeTypeFont,
    fill: tuple[int, int, int] = _INK,
) -> int:
    """Writes the text and returns where it ends."""
    draw.text((left, middle), text, fill=fill, font=font, anchor="lm")
    return left + round(font.getlength(text))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # This font comes with matplotlib, so it is available on every machine.
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _ground(height: int, width: int) -> Rgb:
    return np.full((height, width, 3), _GROUND, dtype=np.uint8)


def _pad(picture: Rgb, height: int, width: int) -> Rgb:
    padded = _ground(height, width)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    return padded


def _side_by_side(pictures: Sequence[Rgb], *, gap: int = _GAP) -> Rgb:
    between = _ground(pictures[0].shape[0], gap)
    return np.hstack([part for picture in pictures for part in (picture, between)][:-1])


def _check(image: NDArray[Any], maps: Mapping[str, NDArray[Any] | None]) -> None:
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"image {image.shape} of {image.dtype} must be (H, W) of uint8")
    for name, values in maps.items():
        if values is None:
            continue
        if values.shape != image.shape:
            raise ValueError(f"{name} {values.shape} must have the image's shape {image.shape}")
        if not (values.min() >= 0 and values.max() <= 1 + 1e-6):  # NaN fails the comparison
            raise ValueError(f"{name} must be in [0, 1]; found {values.min()} to {values.max()}")
