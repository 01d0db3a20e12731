"""A case as a self-explanatory picture: image, attention, contour, color scale and the statement on what a map shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from knee.attention import THRESHOLD
from knee.evaluation.overlays import contour_of, legend_strip, notes_strip, overlay, verdict
from knee.review import CLAIM
from knee.review.cases import NetworkView, ReviewCase
from knee.review.page.html import ReviewRun

_SMALLEST_WIDTH = 512
_TEXT_WIDTH = 900  # wider pictures have larger letters


@dataclass(frozen=True)
class Picture:
    """RGB pixels, and the factor by which the original was enlarged."""

    pixels: NDArray[np.uint8]
    """(H · factor + legend, W · factor, 3)."""
    factor: int


def case_picture(
    grey: NDArray[np.uint8], x: NDArray[np.float32], case: ReviewCase, run: ReviewRun, network: str
) -> Picture:
    """Image (H, W) and attention x (H, W), both on the original pixels, with the legend below.

    ``network`` is ``student`` or ``teacher``, or ``evidence`` for the teacher's evidence map, which has no contour. Small
    images are enlarged by a whole factor, so that the text fits.
    """
    factor = max(1, -(-_SMALLEST_WIDTH // grey.shape[1]))
    contour = None if network == "evidence" else contour_of(x, run.threshold)
    drawn = overlay(grey, x, contour=contour, factor=factor)
    width = drawn.shape[1]
    scale = max(1.0, width / _TEXT_WIDTH)
    narrow = round(width / scale)
    text = np.vstack(
        [
            legend_strip(narrow, cartilage=False, evidence=network == "evidence"),
            notes_strip(_lines(case, run, network), narrow),
        ]
    )
    if scale > 1:
        text = cv2.resize(text, (width, round(text.shape[0] * scale)), interpolation=cv2.INTER_CUBIC)
    return Picture(np.vstack([drawn, text]), factor)


def _lines(case: ReviewCase, run: ReviewRun, network: str) -> list[str]:
    names = run.grade_set.names
    if network == "evidence":
        other = case.evidence_against or 0
        called = verdict("teacher", case.teacher.grade, case.teacher.probabilities, names)
        what = (
            f"Evidence of the {called}: where a change of grey value changes "
            f"the decision between this grade and {other} {names[other]}. Scaled per image."
        )
    else:
        view: NetworkView = getattr(case, network)
        what = (
            f"Attention of the {verdict(network, view.grade, view.probabilities, names)}; white line: x = {run.threshold:g}. "
            + ("Scaled per image." if view.scaled else f"Scaled per image; unscaled maximum {view.maximum:.3g}.")
        )
    return [
        what,
        CLAIM,
        f"Case {case.case} · run {run.run} · model {run.model_hash[:8]}",
    ]


class Outline(NamedTuple):
    """A closed line around a region of a map, or around a hole in it."""

    points: NDArray[np.float64]
    """(n ≥ 4, 2) of column and row, the first point repeated at the end."""
    is_hole: bool = False


def contour_lines(x: NDArray[np.float32], *, threshold: float = THRESHOLD) -> list[Outline]:
    """The outlines of {x > σ₀} and of its holes.

    In DICOM's image coordinates: the outer corner of the first pixel is (0, 0), its centre (0.5, 0.5). Regions come before
    holes, largest first; specks under 3 points are left out.
    """
    inside = (x > threshold).astype(np.uint8)
    found, levels = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    lines: list[tuple[bool, float, int, Outline]] = []
    for outline, level in zip(found, levels[0] if levels is not None else (), strict=True):
        points = cv2.approxPolyDP(outline, 0.5, True).reshape(-1, 2) + 0.5
        if len(points) >= 3:
            line = Outline(np.vstack([points, points[:1]]).astype(np.float64), is_hole=bool(level[3] >= 0))
            lines.append((line.is_hole, -cv2.contourArea(outline), len(lines), line))
    return [line for *_, line in sorted(lines, key=lambda one: one[:3])]
