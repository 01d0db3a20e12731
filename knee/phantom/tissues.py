"""The tissues of a sagittal MR slice, each painted over the tissues behind it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from knee.phantom.anatomy import SEEN_WIDTH, Blob, Patient
from knee.phantom.fields import Field, Lattice, Plane, coverage, ellipse, paint, segment, smooth_step
from knee.phantom.surfaces import Femur, Tibia


def paint_bone(canvas: Field, p: Plane, distance: Field, marrow: float, grain: Lattice, *, cortex_mm: float) -> None:
    """Black cortex around grey marrow with a fine trabecular grain."""
    edge = 1.2 * p.pixel_mm
    paint(canvas, 0.05, coverage(distance, edge))
    texture = 1 + np.float32(0.16) * grain.at(p.x, p.y, 2.2) + np.float32(0.22) * grain.at(p.x + 7, p.y, 11.0)
    fill = (np.float32(marrow) * texture).astype(np.float32)
    canvas += coverage(distance + np.float32(cortex_mm), edge) * (fill - canvas)


def paint_blob(
    canvas: Field, p: Plane, blob: Blob, inside: Field, *, position: float, signal: float, soft_mm: float
) -> None:
    """A spot that stays within `inside` (0–1)."""
    width = blob.width_at(position)
    if width < SEEN_WIDTH:
        return
    radii = (blob.radii[0] * width, blob.radii[1] * width)
    share = coverage(ellipse(p, blob.centre, radii, blob.turn), soft_mm) * inside
    paint(canvas, signal * blob.signal, share)


def paint_soft_tissue(canvas: Field, p: Plane, patient: Patient, grain: Lattice) -> None:
    """Popliteal fat and gastrocnemius behind, Hoffa's fat pad, patellar tendon, skin and air in front."""
    shape, tissue = patient.shape, patient.tissue
    streaks = grain.at(p.x * np.float32(0.9) + p.y * np.float32(0.25), p.y, (3.0, 16.0))
    muscle = np.float32(tissue.muscle) * (1 + np.float32(0.18) * streaks)
    lobules = grain.at(p.x, p.y + np.float32(0.5) * p.x, (4.5, 5.5))
    fat = np.float32(tissue.fat) * (1 + np.float32(0.22) * lobules)
    fat = fat * (1 - np.float32(0.45) * np.clip(1 - np.abs(lobules) * 9, 0, 1))
    canvas += fat
    bulge = grain.at(np.zeros_like(p.x), p.y, 22.0)
    fascia = np.float32(33.0) + np.float32(2.5) * bulge - np.float32(0.004) * p.y * p.y - p.x
    paint(canvas, 0.1, coverage(np.abs(fascia) - np.float32(0.5), 1.2 * p.pixel_mm) * np.float32(0.6))
    share = coverage(fascia + np.float32(1.0), 2.0)
    canvas += share * (muscle - canvas)
    front = np.float32(-shape.skin) - np.float32(0.0016) * (p.y + 12) ** 2 * np.float32(-1.0) + np.float32(1.0) * bulge
    tendon = np.abs(p.x - front - np.float32(8.5) - np.float32(0.05) * p.y) - np.float32(shape.tendon / 2)
    paint(canvas, 0.06, coverage(np.maximum(tendon, np.float32(shape.patella[1] + 6) - p.y), 1.5 * p.pixel_mm))
    paint(canvas, 0.5, coverage(np.abs(p.x - front - 1) - 1, 1.2 * p.pixel_mm) * np.float32(0.7))
    paint(canvas, 0.0, coverage(p.x - front, 1.2 * p.pixel_mm))


def paint_patella(canvas: Field, p: Plane, patient: Patient, grain: Lattice) -> None:
    """The lower part of the patella at the upper left, with its cartilage towards the femur."""
    centre = patient.shape.patella
    outline = ellipse(p, centre, (8.5, 17.0), 0.12)
    rear = ellipse(p, (centre[0] + 2.6, centre[1]), (8.0, 13.0), 0.12)
    paint(canvas, patient.tissue.cartilage * 0.95, coverage(rear, 1.2 * p.pixel_mm))
    paint_bone(canvas, p, outline, patient.tissue.marrow, grain, cortex_mm=0.9)


def paint_fluid(canvas: Field, p: Plane, patient: Patient, femur: Femur, tibia: Tibia, grain: Lattice) -> None:
    """Joint fluid: a film between the surfaces, recesses in front and behind, a dark capsule."""
    surface = femur.condyle - femur.thickness
    effusion = patient.distractors.effusion_mm
    width = np.float32(effusion) * (np.float32(0.55) + np.float32(0.45) * grain.at(femur.angle * 20, p.y * 0, 9.0))
    turned = np.abs(femur.angle)
    reach = width * smooth_step((turned - np.float32(0.75)) / 0.3) * smooth_step((np.float32(2.1) - turned) / 0.4)
    edge = 1.3 * p.pixel_mm
    paint(canvas, 0.10, coverage(surface - reach - np.float32(1.1), edge) * (np.abs(femur.angle) < 2.3))
    paint(canvas, patient.tissue.fluid * 0.95, coverage(surface - reach, edge) * (reach > 0.05))
    tips = patient.shape.meniscus_tips
    tibial_surface = tibia.plateau - tibia.thickness
    between = np.maximum(-surface, -tibial_surface) - np.float32(0.2)
    ends = np.maximum(np.float32(-tips[0] - 1) - p.x, p.x - np.float32(tips[1] + 1))
    between = np.maximum(between, np.float32(-14) - p.y)
    inner = np.maximum(ends, between)
    paint(canvas, patient.tissue.fluid * 0.65, coverage(inner, edge))


def paint_menisci(canvas: Field, p: Plane, patient: Patient, femur: Femur, tibia: Tibia, position: float) -> None:
    """Black wedges between the cartilages; towards the joint's edge the two horns grow into the body (the bow tie)."""
    shape, edge = patient.shape, 1.1 * p.pixel_mm
    over, under = femur.condyle - femur.thickness, tibia.plateau - tibia.thickness
    wedge = np.maximum(np.float32(0.35) - over, np.float32(0.35) - under)
    grow = 5.0 * max(0.0, abs(position) - 0.45)
    for side, tip, torn in zip((-1, 1), shape.meniscus_tips, patient.distractors.tears, strict=True):
        rim = (-shape.tibia[0] if side < 0 else shape.tibia[1]) - 0.5
        out = side * p.x
        bow = np.float32(0.03) * (p.y + 2) ** 2
        body = np.maximum(np.maximum(np.float32(tip - grow) - out, out - np.float32(rim) + bow), wedge)
        paint(canvas, patient.tissue.meniscus, coverage(body, edge))
        if torn:
            middle = side * (tip + rim + 3) / 2
            slope = patient.distractors.tear_slope
            line = segment(p, (middle - 6, -2.0 - 6 * slope), (middle + 6, -2.0 + 6 * slope)) - np.float32(0.6)
            paint(canvas, 0.75, coverage(np.maximum(line, body), edge))


class Cartilage(NamedTuple):
    """One plate: distance to its bone, intact thickness, fraction lost, and the content of the defect."""

    bone: Field
    thickness: Field
    lost: Field
    fill: float


def paint_cartilage(canvas: Field, p: Plane, patient: Patient, plate: Cartilage, grain: Lattice) -> None:
    """Fill the plate with the defect's content, then paint the remaining cartilage over it, darker towards the bone."""
    edge = 1.1 * p.pixel_mm
    there = plate.thickness > 0.05
    bed = coverage(plate.bone - plate.thickness, edge) * coverage(-plate.bone, edge) * there
    hole = patient.tissue.fluid * plate.fill + 0.35 * (1 - plate.fill)
    paint(canvas, hole, bed * (plate.lost > 0.02))
    left = plate.thickness * (1 - plate.lost)
    height = np.clip(plate.bone / np.maximum(plate.thickness, 0.5), 0, 1)
    signal = np.float32(patient.tissue.cartilage) * (np.float32(0.86) + np.float32(0.2) * height)
    signal = signal * (1 + np.float32(0.07) * grain.at(p.x, p.y, 5.0))
    share = coverage(plate.bone - left, edge) * coverage(-plate.bone, edge) * (left > 0.05)
    canvas += share * (signal - canvas)
