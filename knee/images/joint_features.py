"""Features of knee joints: the strength and orientation of edges in small cells, as in histograms of oriented gradients.

The orientation histogram of a cell is described by its first Fourier coefficients: the mean of the root of the gradient's
magnitude, and its means weighted by the cosine and sine of twice and of four times the angle. Twice the angle ignores the
sign of an edge, so a negative has the same features. Cells are divided by the mean around them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]

CELL = 3
"""Side of a cell in pixels."""
CHANNELS = 5
MIRRORED = np.array([1, 1, -1, 1, -1], np.float32)
"""Factors of the channels of a horizontally flipped image."""
_AROUND = 7


def cells(image: Values) -> Values:
    """(h, w, 5) features of an image (H, W), whose incomplete last cells are dropped."""
    across = cv2.Sobel(image, cv2.CV_32F, 1, 0, ksize=3, borderType=cv2.BORDER_REPLICATE)
    down = cv2.Sobel(image, cv2.CV_32F, 0, 1, ksize=3, borderType=cv2.BORDER_REPLICATE)
    size = cv2.magnitude(across, down)
    # The square root keeps one strong edge, such as a collimator's, from hiding the weaker ones of bone around it.
    root = np.sqrt(size)
    height, width = image.shape[0] // CELL, image.shape[1] // CELL
    safe = size + np.float32(1e-6)
    across, down = across / safe, down / safe
    cosine, sine = (across - down) * (across + down), 2 * across * down
    twice, both = (cosine - sine) * (cosine + sine), 2 * cosine * sine
    fine = cv2.merge([root, root * cosine, root * sine, root * twice, root * both])[: height * CELL, : width * CELL]
    found = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, CHANNELS)
    around = cv2.blur(found[..., 0], (_AROUND, _AROUND), borderType=cv2.BORDER_REFLECT_101)
    level = around + np.float32(0.25 * float(around.mean()) + 1e-6)
    return np.asarray(found / level[..., None], np.float32)


def flipped(features: Values) -> Values:
    """The features (…, h, w, 5) of the horizontally flipped image."""
    return np.asarray(features[..., ::-1, :] * MIRRORED, np.float32)


def window(image: Values, x: float, y: float, width: float, shape: tuple[int, int], cells_across: int) -> Values:
    """Features (h, w, 5) of the window of ``shape`` cells around a point, so that ``width`` pixels are ``cells_across`` cells.

    Beyond the image, its edge pixels are repeated.
    """
    scale = width / (cells_across * CELL)
    high, wide = (count * CELL for count in shape)
    place = np.array(
        [[scale, 0, x - scale * (wide - 1) / 2], [0, scale, y - scale * (high - 1) / 2]],
        np.float32,
    )
    # An image is shrunk in advance to at most twice the final resolution, so linear sampling does not alias.
    patch = cv2.warpAffine(
        image,
        place,
        (wide, high),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cells(patch)
