"""Femur and tibia of one sagittal slice as distance fields, their cartilage, and the tissue lost in a focal defect."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from knee.phantom.anatomy import Defect, Shape
from knee.phantom.fields import Field, Plane, smooth_cut, smooth_step, smooth_union


class Femur(NamedTuple):
    """Distance fields around the femur in one slice."""

    bone: Field  # to the bone's surface, negative inside
    condyle: Field  # only to the condyle's articular outline
    angle: Field
    thickness: Field  # of the intact cartilage at this angle; 0 beyond the plate's ends
    centre: tuple[float, float]


def condyle_radius(shape: Shape, angle: npt.NDArray[np.float64], swell: float) -> npt.NDArray[np.float64]:
    """Distance in mm of the condyle's bone from its centre, by angle."""
    axis = np.where(angle < 0, shape.anterior, shape.posterior)
    # Slightly squarer than an ellipse: flat in the weight-bearing part, round posteriorly.
    power = 2.25
    radius = (np.abs(np.sin(angle) / axis) ** power + np.abs(np.cos(angle) / shape.distal) ** power) ** (-1 / power)
    wave = sum(w * np.cos((k + 2) * angle + 1.3 * k) for k, w in enumerate(shape.waves))
    return np.asarray(swell * radius * (1 + wave))


def plate_thickness(shape: Shape, angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Thickness in mm of the intact femoral cartilage, tapering to 0 at the ends of the plate."""
    wave = sum(w * np.cos((k + 1) * angle + 2.1 * k) for k, w in enumerate(shape.thickness_waves))
    first, last = shape.plate_ends
    taper = np.clip(np.minimum(angle - first, last - angle) / 0.45, 0, 1)
    return np.asarray(shape.femoral_cartilage * (1 + wave) * np.sqrt(taper * (2 - taper)))


def place_femur(p: Plane, shape: Shape, swell: float) -> Femur:
    """Femur with the condyle's cartilage surface touching y = 0."""
    table = np.linspace(-np.pi, np.pi, 721)
    radius, thickness = condyle_radius(shape, table, swell), plate_thickness(shape, table)
    reach = (radius + thickness) * np.cos(table)
    centre = (0.0, -float(reach.max()))
    dx, dy = p.x - np.float32(centre[0]), p.y - np.float32(centre[1])
    angle = np.arctan2(dx, dy)
    rho = np.interp(angle, table, radius).astype(np.float32)
    slope = np.interp(angle, table, np.gradient(radius, table)).astype(np.float32)
    condyle = (np.sqrt(dx * dx + dy * dy) - rho) * rho / np.sqrt(rho * rho + slope * slope)
    half = np.float32(17.0) + np.maximum(-dy - 18, 0) * np.float32(-0.12)
    shaft = np.maximum(np.abs(dx + 6) - half, dy + 4)
    bone = smooth_union(condyle, shaft, 5.0)
    return Femur(bone, condyle, angle, np.interp(angle, table, thickness).astype(np.float32), centre)


class Tibia(NamedTuple):
    """Distance fields around the tibia."""

    bone: Field
    plateau: Field  # to the plateau's bone, negative inside
    thickness: Field


def place_tibia(p: Plane, shape: Shape) -> Tibia:
    """Tibia with its cartilage just under y = `gap` at the contact."""
    middle = (shape.tibia[0] + shape.tibia[1]) / 2
    half = (shape.tibia[1] - shape.tibia[0]) / 2
    off = (p.x - np.float32(middle)) / np.float32(half - 1.5)
    waves = shape.thickness_waves
    wave = 1 + np.float32(waves[1]) * np.cos(3 * off) + np.float32(waves[2]) * np.sin(2 * off)
    thickness = np.float32(shape.tibial_cartilage) * wave * np.sqrt(np.clip(1 - off**4, 0, 1))
    top = np.float32(shape.gap + shape.tibial_cartilage) + np.float32(shape.slope) * p.x
    top = top - np.float32(0.5 * shape.dish) * p.x * p.x
    tilt = np.sqrt(1 + (np.float32(shape.slope) - np.float32(shape.dish) * p.x) ** 2)
    plateau = (top - p.y) / tilt
    below = np.maximum(p.y - top, 0)
    inset = np.float32(0.30) * below - np.float32(0.0022) * below * below
    front = np.float32(shape.tibia[0]) + np.float32(0.45) * inset - p.x
    sides = np.maximum(front, p.x - np.float32(shape.tibia[1]) + inset)
    return Tibia(smooth_cut(plateau, sides, 3.0), plateau, thickness)


def lost(defect: Defect, along_mm: Field, ragged: Field) -> Field:
    """Fraction of the thickness lost, 0–1, along the surface: steep shoulders, a slightly ragged floor."""
    if defect.depth == 0:
        return np.zeros_like(along_mm)
    shoulder = 1.6
    inside = smooth_step((np.float32(defect.width_mm / 2) - np.abs(along_mm)) / np.float32(shoulder) + np.float32(0.5))
    floor = np.float32(defect.depth) + (np.float32(0.05) * ragged if defect.depth < 1 else np.float32(0))
    return inside * floor
