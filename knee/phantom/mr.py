"""Sagittal MR slices through one femorotibial compartment, with focal femoral cartilage defects.

Contrast as in an intermediate-weighted, fat-suppressed sequence. The grade of a slice is that of its femoral defect:
0 none, 1 partial-thickness (38–56 % of the thickness lost), 2 full-thickness (to the bone). The mask is the anatomical
cartilage plate of the femur including the defect: attention should cover where cartilage is or should be. Tibial
defects look the same but do not affect the grade.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from knee.phantom.anatomy import SEEN_WIDTH, Blob, Defect, Patient, draw_patient
from knee.phantom.fields import Field, Image, Lattice, Plane, coverage, paint, plane, rician
from knee.phantom.surfaces import Femur, Tibia, condyle_radius, lost, place_femur, place_tibia, plate_thickness
from knee.phantom.tissues import (
    Cartilage,
    paint_blob,
    paint_bone,
    paint_cartilage,
    paint_fluid,
    paint_menisci,
    paint_patella,
    paint_soft_tissue,
)

EXTENT_MM = 92.0
MR_STREAM = 1  # makes these draws independent of the radiographs' with the same seed


@dataclass(frozen=True, kw_only=True)
class MrTruth:
    """True parameters of one slice: for tests and simulated readers, never for training."""

    grade: int
    lesion_depth: float  # fraction of the thickness lost, 0–1
    lesion_width_mm: float
    lesion_angle: float  # radians from straight down, positive to posterior
    lesion_column: int  # pixel position of the defect's center (for grade 0, of where it would be)
    lesion_row: int
    thickness_mm: float  # intact femoral cartilage there
    tibial_depth: float
    tibial_width_mm: float
    cysts: int
    vessels: int
    oedema: int
    torn_horns: int
    effusion_mm: float


class MrSlice(NamedTuple):
    """One slice: `image` uint8 (size, size), `mask` uint8 {0, 1} (size, size), `truth`."""

    image: Image
    mask: Image
    truth: MrTruth


def finish(canvas: Field, p: Plane, patient: Patient, rng: np.random.Generator) -> Image:
    """Coil shading, Rician noise, eight bits."""
    x, y = p.x / np.float32(EXTENT_MM / 2), p.y / np.float32(EXTENT_MM / 2)
    across, down, bowl = (np.float32(v) for v in patient.tissue.bias)
    shaded = canvas * np.clip(1 + across * x + down * y + bowl * (x * x - np.float32(0.3)), 0.5, 1.6)
    noisy = rician(shaded, patient.tissue.noise, rng)
    image: Image = np.clip(noisy * np.float32(patient.tissue.gain), 0, 255).astype(np.uint8)
    return image


def draw_mr_slice(*, seed: int, patient: int, index: int, slices: int = 8, size: int = 96) -> MrSlice:
    """Slice `index` of `slices` of one patient, `size` × `size` pixels; depends only on these numbers."""
    shared = np.random.SeedSequence([seed, MR_STREAM, patient])
    person = draw_patient(np.random.default_rng(shared), slices)
    rng = np.random.default_rng(np.random.SeedSequence([seed, MR_STREAM, patient, index + 1]))
    position = (2 * index + 1) / slices - 1
    shape = person.shape
    shift = (shape.shift[0] + float(rng.normal(0, 0.4)), shape.shift[1] + float(rng.normal(0, 0.4)))
    p = plane(size, EXTENT_MM, turn=shape.turn, shift_mm=shift, scale=shape.scale)
    return draw_on(p, person, index, position, rng)


def draw_on(p: Plane, person: Patient, index: int, position: float, rng: np.random.Generator) -> MrSlice:
    """The slice at `position` (−1 to 1 across the compartment) painted back to front."""
    grain = Lattice(rng)
    femur = place_femur(p, person.shape, 1 - 0.05 * position * position)
    tibia = place_tibia(p, person.shape)
    canvas = np.zeros_like(p.x)
    paint_soft_tissue(canvas, p, person, grain)
    for vessel in person.distractors.vessels:
        paint_blob(canvas, p, vessel, np.ones_like(canvas), position=position, signal=0.95, soft_mm=1.2)
    paint_patella(canvas, p, person, grain)
    paint_fluid(canvas, p, person, femur, tibia, grain)
    paint_menisci(canvas, p, person, femur, tibia, position)
    paint_bones(canvas, p, person, femur, tibia, grain, position)
    defect, tibial = person.lesion.in_slice(index), person.tibial_lesion.in_slice(index)
    ragged = grain.at(p.x, p.x, 1.7)
    along = p.x - np.float32(tibial.place)
    plate = Cartilage(tibia.plateau, tibia.thickness, lost(tibial, along, ragged), tibial.fill)
    paint_cartilage(canvas, p, person, plate, grain)
    radius = place_on_condyle(person, defect)[0]
    along = (femur.angle - np.float32(defect.place)) * np.float32(radius)
    plate = Cartilage(femur.condyle, femur.thickness, lost(defect, along, ragged), defect.fill)
    paint_cartilage(canvas, p, person, plate, grain)
    mask = (femur.condyle > 0) & (femur.condyle < femur.thickness)
    truth = describe(p, person, femur, defect, tibial, position)
    return MrSlice(finish(canvas, p, person, rng), mask.astype(np.uint8), truth)


def paint_bones(
    canvas: Field, p: Plane, person: Patient, femur: Femur, tibia: Tibia, grain: Lattice, position: float
) -> None:
    """Both bones with the scar of the growth plate, marrow oedema and cysts."""
    marrow = person.tissue.marrow
    paint_bone(canvas, p, tibia.bone, marrow, grain, cortex_mm=0.8)
    paint_bone(canvas, p, femur.bone, marrow, grain, cortex_mm=0.8)
    scar = np.abs(
        p.y - np.float32(person.shape.scar) + np.float32(0.006) * p.x * p.x + np.float32(0.6) * grain.at(p.x, p.x, 9.0)
    )
    line = np.maximum(scar - np.float32(0.4), femur.bone + 2)
    paint(canvas, 0.6 * marrow, coverage(line, 1.5 * p.pixel_mm))
    inside = np.maximum(coverage(femur.bone + 1, 1.0), coverage(tibia.bone + 1, 1.0))
    for blob in person.distractors.oedema:
        paint_blob(canvas, p, blob, inside, position=position, signal=0.5, soft_mm=7.0)
    for blob in person.distractors.cysts:
        paint_blob(canvas, p, blob, inside, position=position, signal=1.0, soft_mm=1.2)


def place_on_condyle(person: Patient, defect: Defect) -> tuple[float, float]:
    """Distance of the defect's middle from the condyle's centre, and the intact thickness there, in mm."""
    angle = np.asarray([defect.place])
    thickness = float(plate_thickness(person.shape, angle)[0])
    return float(condyle_radius(person.shape, angle, 1.0)[0]) + thickness / 2, thickness


def describe(p: Plane, person: Patient, femur: Femur, defect: Defect, tibial: Defect, position: float) -> MrTruth:
    """The drawn parameters of a slice; the defect's pixel is the one closest to its center in the anatomy."""
    radius, thickness = place_on_condyle(person, defect)
    x = femur.centre[0] + radius * np.sin(defect.place)
    y = femur.centre[1] + radius * np.cos(defect.place)
    row, column = np.unravel_index(np.argmin((p.x - x) ** 2 + (p.y - y) ** 2), p.x.shape)
    distractors = person.distractors

    def seen(blobs: tuple[Blob, ...]) -> int:
        return sum(blob.width_at(position) >= SEEN_WIDTH for blob in blobs)

    return MrTruth(
        grade=defect.grade,
        lesion_depth=defect.depth,
        lesion_width_mm=defect.width_mm if defect.depth else 0.0,
        lesion_angle=defect.place,
        lesion_column=int(column),
        lesion_row=int(row),
        thickness_mm=thickness,
        tibial_depth=tibial.depth,
        tibial_width_mm=tibial.width_mm if tibial.depth else 0.0,
        cysts=seen(distractors.cysts),
        vessels=seen(distractors.vessels),
        oedema=seen(distractors.oedema),
        torn_horns=sum(distractors.tears),
        effusion_mm=distractors.effusion_mm,
    )
