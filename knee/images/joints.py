"""Find the knee joints of frontal radiographs: none, one, or the two of a film of both legs.

A linear filter on the features of ``knee.images.joint_features`` runs over an image pyramid; linear regressions on a window
around each maximum then correct its position and size, score it, and give the side by the anatomy (mainly the fibula, which is
lateral). All weights were fitted to the phantom by ``experiments/knee_detector.py`` and are in ``joints.npz``; no image of a
patient was used. Photographic negatives are found alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from knee.images.joint_features import CELL, Values, cells, flipped, window

ACROSS = 12
"""Cells across the bones at the joint."""
FILTER = (14, 16)
CLOSE_UP = (20, 20)
"""Cells (down, across) of the filter's window, and of the one around a found joint."""
BOX_WIDTHS = 1.75
"""Side of a knee's box in widths of its bones: 140 mm for bones 80 mm wide."""

_LONGEST = 512
_SHRINK = 1.2
_SMALLEST = 0.14
"""The narrowest bones looked for, as a share of the image's shorter side."""
_BONES_MM = (55.0, 110.0)
"""The range of the bones' width where the spacing is known, with magnification."""
_CANDIDATES = 4
_ACCEPTED = -0.05
"""Score above which a joint counts as found; chosen on real knees of a validation set, of which 99.5 % are above it."""
_LEAST = -0.35
"""Score of the filter below which no close-up is taken."""


class Weights(NamedTuple):
    """What ``joints.npz`` holds."""

    filter: Values
    """(14, 16, 5), equal to its own horizontal flip, and its constant."""
    filter_bias: Values
    offset: Values
    """(20 · 20 · 5, 3): shift across and down in widths, and logarithm of the size; and its constants."""
    offset_bias: Values
    score: Values
    """(20 · 20 · 5): 1 for knees, −1 for others; and its constant."""
    score_bias: Values
    side: Values
    """(20 · 20 · 5), for the features minus those of the flipped image: 1 for a right knee, −1 for a left."""
    scales: Values
    """Factors that turn score and evidence of the side into log odds."""


@dataclass(frozen=True)
class KneeBox:
    """A knee joint in an image, in pixels (centers at whole numbers)."""

    x: float
    y: float
    """The middle of the joint line."""
    width: float
    """Width of the bones at the joint."""
    score: float
    """Around 1 for a clear knee, around −1 for anything else."""
    side_evidence: float
    """Above 0 if the knee looks like a right one on a film seen as if facing the patient; below 0 like a left one."""

    @property
    def side(self) -> str:
        """'R' or 'L' by the anatomy alone."""
        return "R" if self.side_evidence >= 0 else "L"

    @property
    def confidence(self) -> float:
        """The probability that this is a knee, as calibrated on the phantom."""
        return _sigmoid(float(weights().scales[0]) * self.score)

    @property
    def side_confidence(self) -> float:
        """The probability that ``side`` is right, as calibrated on the phantom."""
        return _sigmoid(float(weights().scales[1]) * abs(self.side_evidence))


def find_knees(image: NDArray[Any], spacing_mm: tuple[float, float] | None = None) -> tuple[KneeBox, ...]:
    """The knees of an image (H, W), at most two, from the left of the image to the right.

    Of a film with two knees, which must be of similar size and at a similar height, the evidence of the side is pooled: one
    has a right knee's and the other a left knee's.
    """
    small, scale = _reduced(np.asarray(image, np.float32))
    found: list[KneeBox] = []
    for score, x, y, width in search(small, _widths(small, scale, spacing_mm)):
        if score < _LEAST:
            break
        knee = close_up(small, x, y, width)
        if knee.score > _ACCEPTED and all(_apart(knee, other) for other in found):
            found.append(knee)
        if len(found) == _CANDIDATES:
            break
    pairs = [
        (one.score + other.score, one, other)
        for number, one in enumerate(found)
        for other in found[number + 1 :]
        if _is_pair(one, other)
    ]
    if pairs:
        _, one, other = max(pairs, key=lambda pair: pair[0])
        left, right = sorted((one, other), key=lambda knee: knee.x)
        pooled = left.side_evidence - right.side_evidence
        chosen = [replace(left, side_evidence=pooled), replace(right, side_evidence=-pooled)]
    else:
        chosen = sorted(found, key=lambda knee: -knee.score)[:1]
    return tuple(
        replace(knee, x=(knee.x + 0.5) / scale - 0.5, y=(knee.y + 0.5) / scale - 0.5, width=knee.width / scale)
        for knee in chosen
    )


@cache
def weights() -> Weights:
    """The weights of ``joints.npz``."""
    with np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False) as stored:
        return Weights(*(np.asarray(stored[name], np.float32) for name in Weights._fields))


def search(
    image: Values, widths: list[float], by: tuple[Values, float] | None = None, *, most: int = 6
) -> list[tuple[float, float, float, float]]:
    """Maxima of the filter, best first: score, x, y, and width of the bones. ``by``: another filter and its constant."""
    template, bias = by or (weights().filter, float(weights().filter_bias[0]))
    found = []
    for width in widths:
        scale = ACROSS * CELL / width
        across, down = FILTER[1] // 2 * CELL, FILTER[0] // 2 * CELL
        level = _resized(image, scale)
        features = cells(cv2.copyMakeBorder(level, down, down, across, across, cv2.BORDER_REPLICATE))
        height, length = features.shape[0] - FILTER[0] + 1, features.shape[1] - FILTER[1] + 1
        if min(height, length) < 1:
            continue
        score = np.full(features.shape[:2], bias, np.float32)
        for channel, kernel in zip(cv2.split(features), cv2.split(template), strict=True):
            score += cv2.filter2D(channel, -1, kernel, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
        score = score[:height, :length]
        rows, columns = np.nonzero(score >= cv2.dilate(score, np.ones((3, 3), np.uint8)))
        best = np.argsort(-score[rows, columns])[: 2 * most]
        for row, column in zip(rows[best].tolist(), columns[best].tolist(), strict=True):
            x, y = (column + FILTER[1] / 2) * CELL - across, (row + FILTER[0] / 2) * CELL - down
            found.append((float(score[row, column]), x / scale - 0.5, y / scale - 0.5, width))
    kept: list[tuple[float, float, float, float]] = []
    for one in sorted(found, reverse=True):
        if all(max(abs(one[1] - other[1]), abs(one[2] - other[2])) > 0.5 * max(one[3], other[3]) for other in kept):
            kept.append(one)
        if len(kept) == most:
            break
    return kept


def close_up(image: Values, x: float, y: float, width: float) -> KneeBox:
    """Correct a found position and size twice, then score it and find its side."""
    fitted = weights()
    for _ in range(2):
        step = np.clip(features_at(image, x, y, width).ravel() @ fitted.offset + fitted.offset_bias, -0.12, 0.12)
        x, y, width = x + float(step[0]) * width, y + float(step[1]) * width, width * math.exp(float(step[2]))
    features = features_at(image, x, y, width)
    score = float(scores(features.reshape(1, -1), fitted)[0])
    return KneeBox(x, y, width, score, float((features - flipped(features)).ravel() @ fitted.side))


def scores(windows: Values, fitted: Weights) -> Values:
    """The mean of the filter's score and the close-up's own for windows (n, 2000) of ``features_at``."""
    rows, columns = ((outer - inner) // 2 for outer, inner in zip(CLOSE_UP, FILTER, strict=True))
    maps = windows.reshape(len(windows), *CLOSE_UP, -1)
    middle = maps[:, rows : rows + FILTER[0], columns : columns + FILTER[1]].reshape(len(windows), -1)
    by_filter = middle @ fitted.filter.ravel() + fitted.filter_bias[0]
    return np.asarray((by_filter + windows @ fitted.score + fitted.score_bias[0]) / 2, np.float32)


def features_at(image: Values, x: float, y: float, width: float, shape: tuple[int, int] = CLOSE_UP) -> Values:
    """Features (h, w, 5) of the window around a joint."""
    scale = 1.0
    while width * scale > 2 * ACROSS * CELL:
        scale /= 2
    small = _resized(image, scale)
    return window(small, (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5, width * scale, shape, ACROSS)


def pyramid(image: Values) -> list[float]:
    """The widths of bones looked for where the spacing is not known."""
    shorter = min(image.shape)
    steps = math.ceil(math.log(1.05 / _SMALLEST) / math.log(_SHRINK))
    return [_SMALLEST * shorter * _SHRINK**step for step in range(steps)]


def _widths(image: Values, scale: float, spacing_mm: tuple[float, float] | None) -> list[float]:
    everything = pyramid(image)
    if spacing_mm is None:
        return everything
    low, high = (mm / math.sqrt(spacing_mm[0] * spacing_mm[1]) * scale for mm in _BONES_MM)
    return [width for width in everything if low <= width <= high] or everything


def _reduced(image: Values) -> tuple[Values, float]:
    """An image of at most 512 pixels on its longer side, and its scale."""
    scale = min(1.0, _LONGEST / max(image.shape))
    return _resized(image, scale), scale


def _resized(image: Values, scale: float) -> Values:
    if scale == 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.float32
    )


def _apart(one: KneeBox, other: KneeBox) -> bool:
    return max(abs(one.x - other.x), abs(one.y - other.y)) > 0.6 * max(one.width, other.width)


def _is_pair(one: KneeBox, other: KneeBox) -> bool:
    """Whether two joints may be the two knees of a film: of similar size, next to each other."""
    width = (one.width + other.width) / 2
    similar = abs(math.log(one.width / other.width)) < 0.3
    return similar and abs(one.x - other.x) > width and abs(one.y - other.y) < 0.8 * width


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -30.0), 30.0)))
