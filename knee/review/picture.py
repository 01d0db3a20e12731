"""A case as a picture that explains itself: image, attention, contours, colour scale and what the map is not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from knee.attention import THRESHOLD
from knee.review.cases import NetworkView, ReviewCase
from knee.review.colors import OPACITY, heat_alpha, heat_colors, paint
from knee.review.page.html import ReviewRun

CLAIM = "Where the model looked; not a segmentation of disease. RESEARCH USE ONLY, not for diagnostic use."
_SMALLEST_WIDTH = 512
_LINE = 20


@dataclass(frozen=True)
class Picture:
    """RGB pixels, and by how many of them each original pixel is shown in each direction."""

    pixels: NDArray[np.uint8]
    """(H · factor + legend, W · factor, 3)."""
    factor: int


def case_picture(
    grey: NDArray[np.uint8], x: NDArray[np.float32], case: ReviewCase, run: ReviewRun, network: str
) -> Picture:
    """Image (H, W) and attention x (H, W), both on the original pixels, with the legend below.

    ``network`` is ``student`` or ``teacher``. Small images are enlarged by a whole factor, so that the text fits.
    """
    factor = max(1, -(-_SMALLEST_WIDTH // grey.shape[1]))
    height, width = grey.shape[0] * factor, grey.shape[1] * factor
    large = cv2.resize(grey, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    field = _enlarge(x, factor)
    picture = paint(large, field)
    outlines, _ = cv2.findContours((field > run.threshold).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thin = max(1, width // 700)
    # Dark on both sides: the line is seen on light bone as well.
    for ink, thickness in (((0, 0, 0), thin + 2), ((255, 255, 255), thin)):
        cv2.drawContours(picture, outlines, -1, ink, thickness)
    return Picture(np.vstack([picture, _legend(width, case, run, network)]), factor)


def _enlarge(x: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    size = (x.shape[1] * factor, x.shape[0] * factor)
    return np.asarray(cv2.resize(x, size, interpolation=cv2.INTER_LINEAR), np.float32) if factor > 1 else x


def _legend(width: int, case: ReviewCase, run: ReviewRun, network: str) -> NDArray[np.uint8]:
    """The lines of text and the colour scale, (rows, width, 3)."""
    scale = max(1.0, width / 900)
    line, margin = round(_LINE * scale), round(10 * scale)
    font = _font(round(13 * scale))
    lines = _wrapped(_lines(case, run, network), font, width - 2 * margin)
    sheet = Image.new("RGB", (width, line * (len(lines) + 1) + 2 * margin), (0, 0, 0))
    pen = ImageDraw.Draw(sheet)
    left, right, top = margin + line, min(width - margin - line, margin + round(340 * scale)), margin
    ramp = np.linspace(0, 1, right - left, dtype=np.float32)
    bar = _bar(ramp, round(line * 0.55))
    sheet.paste(Image.fromarray(bar), (left, top + 2))
    pen.text((margin, top), "0", fill=(220, 220, 220), font=font)
    pen.text((right + margin // 2, top), "1", fill=(220, 220, 220), font=font)
    mark = left + round(run.threshold * (right - left))
    pen.line([(mark, top), (mark, top + bar.shape[0] + 3)], fill=(255, 255, 255), width=max(1, round(scale)))
    for number, text in enumerate(lines, 1):
        pen.text((margin, top + number * line), text, fill=(220, 220, 220), font=font)
    return np.asarray(sheet, np.uint8)


def _lines(case: ReviewCase, run: ReviewRun, network: str) -> list[str]:
    view: NetworkView = getattr(case, network)
    grade, share = view.grade, float(view.probabilities[view.grade])
    return [
        f"Attention x of the {network} for its grade {grade} ({run.grade_set.names[grade]}, {share:.0%}); "
        f"white line: x = {run.threshold:g}",
        f"Scaled per image; unscaled maximum {view.maximum:.3g}",
        CLAIM,
        f"Case {case.case} · run {run.run} · model {run.model_hash[:8]}",
    ]


def _bar(ramp: NDArray[np.float32], height: int) -> NDArray[np.uint8]:
    """The colour scale as the overlay shows it over mid grey."""
    alpha = heat_alpha(ramp, opacity=OPACITY)[:, None]
    row = 96 * (1 - alpha) + heat_colors()[np.round(ramp * 255).astype(np.uint8)] * alpha
    return np.tile(np.round(row).astype(np.uint8), (height, 1, 1))


def _wrapped(lines: list[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    wrapped = []
    for line in lines:
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if current and font.getlength(longer) > width:
                wrapped.append(current)
                longer = word
            current = longer
        wrapped.append(current)
    return wrapped


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that pictures look alike everywhere."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def contour_lines(x: NDArray[np.float32], *, threshold: float = THRESHOLD) -> list[NDArray[np.float64]]:
    """The outlines of {x > σ₀} as closed polylines (n ≥ 4, 2) of column and row, the first point repeated at the end.

    In DICOM's image coordinates: the outer corner of the first pixel is (0, 0), its centre (0.5, 0.5). Largest first;
    specks under 3 points are left out.
    """
    inside = (x > threshold).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    lines = []
    for outline in sorted(outlines, key=cv2.contourArea, reverse=True):
        points = cv2.approxPolyDP(outline, 0.5, True).reshape(-1, 2) + 0.5
        if len(points) >= 3:
            lines.append(np.vstack([points, points[:1]]).astype(np.float64))
    return lines
