"""Distance fields, coverage and smooth noise in millimetres: the drawing primitives of both phantoms.

Only elementwise NumPy, no matrix products or library filters, so that an image depends only on the seed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]  # float32, one number per pixel, (size, size)
Image = npt.NDArray[np.uint8]


class Plane(NamedTuple):
    """Pixel coordinates in the frame of the anatomy, in millimetres; x to the right of the page, y downwards."""

    x: Field
    y: Field
    pixel_mm: float


def plane(size: int, extent_mm: float, *, turn: float, shift_mm: tuple[float, float], scale: float) -> Plane:
    """Pixel centres of a square of `extent_mm`, in the frame of an anatomy rotated by `turn` radians, shifted and scaled."""
    pixel = extent_mm / size
    page = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(pixel) - np.float32(extent_mm / 2)
    across = (page[None, :] - np.float32(shift_mm[0])) / np.float32(scale)
    down = (page[:, None] - np.float32(shift_mm[1])) / np.float32(scale)
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return Plane(across * cosine + down * sine, down * cosine - across * sine, pixel / scale)


def coverage(distance: Field, edge_mm: float) -> Field:
    """Fraction of each pixel inside a shape, 0–1, from its signed distance (negative inside) and the edge's width."""
    share: Field = np.clip(np.float32(0.5) - distance / np.float32(edge_mm), 0, 1)
    return share


def paint(canvas: Field, value: Field | float, share: Field) -> None:
    """Blend `value` into the canvas with weight `share` (0–1), in place."""
    canvas += share * (np.float32(value) - canvas)


def smooth_union(a: Field, b: Field, radius_mm: float) -> Field:
    """The smaller of two distances (union of the shapes), with the crease filled over about `radius_mm`."""
    blend = np.clip(np.float32(0.5) + (b - a) / np.float32(2 * radius_mm), 0, 1)
    union: Field = b + (a - b) * blend - np.float32(radius_mm) * blend * (1 - blend)
    return union


def smooth_cut(a: Field, b: Field, radius_mm: float) -> Field:
    """The larger of two distances (intersection of the shapes), with rounded corners."""
    return -smooth_union(-a, -b, radius_mm)


def ellipse(p: Plane, centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> Field:
    """Approximate signed distance in mm to a rotated ellipse; exact on its outline and for circles."""
    dx, dy = p.x - np.float32(centre[0]), p.y - np.float32(centre[1])
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u = (dx * cosine + dy * sine) / np.float32(radii[0])
    v = (dy * cosine - dx * sine) / np.float32(radii[1])
    return (np.sqrt(u * u + v * v) - 1) * np.float32(min(radii))


def segment(p: Plane, start: tuple[float, float], end: tuple[float, float]) -> Field:
    """Distance in mm to the straight line between two points."""
    along = (end[0] - start[0], end[1] - start[1])
    length2 = max(along[0] ** 2 + along[1] ** 2, 1e-6)
    dx, dy = p.x - np.float32(start[0]), p.y - np.float32(start[1])
    t = np.clip((dx * np.float32(along[0]) + dy * np.float32(along[1])) / np.float32(length2), 0, 1)
    return np.sqrt((dx - t * np.float32(along[0])) ** 2 + (dy - t * np.float32(along[1])) ** 2)


def smooth_step(value: Field) -> Field:
    """Smooth step: 0 below 0, 1 above 1, S-shaped between."""
    t: Field = np.clip(value, 0, 1)
    return t * t * (3 - 2 * t)


class Lattice:
    """Smooth noise in −1…1, drawn once on a small lattice and interpolated at any position, so any image size works."""

    def __init__(self, rng: np.random.Generator, cells: int = 24) -> None:
        self.values = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)

    def at(self, x: Field, y: Field, cell_mm: float | tuple[float, float]) -> Field:
        """Noise at millimetre positions; features have the size of a cell (across, down)."""
        across, down = cell_mm if isinstance(cell_mm, tuple) else (cell_mm, cell_mm)
        u, v = x / np.float32(across), y / np.float32(down)
        column, row = np.floor(u), np.floor(v)
        fu, fv = smooth_step(u - column), smooth_step(v - row)
        cells = len(self.values)
        c0, r0 = column.astype(np.int32) % cells, row.astype(np.int32) % cells
        c1, r1 = (c0 + 1) % cells, (r0 + 1) % cells
        top = self.values[r0, c0] * (1 - fu) + self.values[r0, c1] * fu
        bottom = self.values[r1, c0] * (1 - fu) + self.values[r1, c1] * fu
        noise: Field = top * (1 - fv) + bottom * fv
        return noise


def rician(signal: Field, deviation: float, rng: np.random.Generator) -> Field:
    """Magnitude of a complex signal with Gaussian noise of `deviation` in both channels."""
    real = signal + np.float32(deviation) * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = np.float32(deviation) * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.sqrt(real * real + imaginary * imaginary))
