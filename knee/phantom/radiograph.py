"""Antero-posterior radiographs of the knee with Kellgren–Lawrence grades 0–4.

Frame: millimetres, medial is positive x, the tibial plateau is at y = 0 and y runs distally. A right knee is shown
with medial on the right of the page, a left knee mirrored. The image shows attenuation, which adds up along the beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from knee.phantom.arthritis import (
    Arthritis,
    Build,
    Exposure,
    draw_arthritis,
    draw_build,
    draw_exposure,
    draw_grades,
)
from knee.phantom.fields import (
    Field,
    Image,
    Lattice,
    Plane,
    coverage,
    ellipse,
    plane,
    smooth_cut,
    smooth_step,
    smooth_union,
)

FILM_MM = 98.0
XRAY_STREAM = 2
CONDYLE_MM = 23.0  # distance from the midline at which the joint space is measured
BAND_MM = 4.0  # width of bone on either side of the joint space that the mask includes


@dataclass(frozen=True, kw_only=True)
class RadiographTruth:
    """True parameters of one film: for tests and simulated readers, never for training."""

    grade: int
    joint_space_medial_mm: float
    joint_space_lateral_mm: float
    osteophyte_femur_medial_mm: float
    osteophyte_femur_lateral_mm: float
    osteophyte_tibia_medial_mm: float
    osteophyte_tibia_lateral_mm: float
    sclerosis: float
    deformity_mm: float
    cysts: int
    is_lateral: bool
    condyles_mm: float
    spines_mm: float
    notch_mm: float
    patella_lateral_mm: float
    patella_height_mm: float
    fibula_mm: float
    soft_tissue: float
    density: float
    is_overexposed: bool
    is_negative: bool


class Radiograph(NamedTuple):
    """One film: `image` uint8 (size, size), `mask` uint8 {0, 1} of the joint space and its margins, `truth`."""

    image: Image
    mask: Image
    truth: RadiographTruth


class Bones(NamedTuple):
    """Distances to femur and tibia (negative inside), and to their articular lines (negative on the bone's side)."""

    femur: Field
    tibia: Field
    femoral_line: Field
    tibial_line: Field


def depression(x: Field, knee: Arthritis) -> Field:
    """Depression of the worse plateau, in mm."""
    worse = -1 if knee.is_lateral else 1
    return np.asarray(np.float32(knee.deformity_mm) * smooth_step((worse * x - 11) / 14))


def plateau(x: Field, build: Build, knee: Arthritis) -> Field:
    """Height y of the tibial plateau: two shallow dishes, spines between, a depression if it is deformed."""
    medial = np.float32(build.dish[0]) * np.exp(-(((x - 23) / 11) ** 2))
    lateral = np.float32(build.dish[1]) * np.exp(-(((x + 23) / 11) ** 2))
    sharp = 1 + 0.03 * max(knee.spurs_mm)
    spines = np.float32(build.spines[0] * sharp) * np.exp(-((np.abs(x - 4.5) / 5.2) ** np.float32(1.35)))
    spines = np.maximum(
        spines, np.float32(build.spines[1] * sharp) * np.exp(-((np.abs(x + 6) / 5.6) ** np.float32(1.35)))
    )
    saddle = np.float32(0.5 * min(build.spines)) * np.exp(-((x / 10) ** 2))
    shoulder = np.float32(0.02) * np.maximum(np.abs(x) - np.float32(0.78 * build.tibia_half), 0) ** 2
    return np.asarray(medial + lateral + depression(x, knee) + shoulder - np.maximum(spines, saddle))


def spur(p: Plane, corner: tuple[float, float], size_mm: float, way: tuple[int, int]) -> Field:
    """An osteophyte at a corner of a bone: a beak that points outwards and away from the joint's middle."""
    out = way[0] * (p.x - np.float32(corner[0]))
    up = way[1] * (p.y - np.float32(corner[1])) - np.float32(0.045) * np.maximum(out, 0) ** 2
    along = np.where(out > 0, out / np.float32(size_mm + 0.6), (out / np.float32(7)) ** 2)
    height = np.float32(0.32 * size_mm + 1.6) * np.sqrt(np.clip(1 - along, 0, 1))
    beak = np.maximum(np.abs(up) - height, out - np.float32(size_mm + 0.6))
    return np.asarray(np.maximum(beak, -out - 7) * np.float32(0.9))


def condyles(x: Field, build: Build, knee: Arthritis) -> Field:
    """Height y of the femur's articular line: on the plateau at the drawn joint spaces, tilted to the narrower side."""
    tilt = (knee.medial_mm - knee.lateral_mm) / (2 * CONDYLE_MM)
    space = (knee.medial_mm + knee.lateral_mm) / 2 + np.float32(tilt) * x
    rounding = np.float32(build.roundness) * (np.abs(x) - np.float32(CONDYLE_MM)) ** 2
    medial = smooth_step(x / 24 + np.float32(0.5))
    under = np.float32(build.dish[1]) + np.float32(build.dish[0] - build.dish[1]) * medial
    height, half = build.notch
    notch = np.float32(height) / (1 + np.abs(x / np.float32(half)) ** np.float32(3.4))
    # The condyle follows the depressed plateau beneath it.
    return np.asarray(under + depression(x, knee) - space - rounding - notch)


def place_femur(p: Plane, build: Build, knee: Arthritis) -> tuple[Field, Field]:
    """Distance to the femur and to its articular line."""
    line = p.y - condyles(p.x, build, knee)
    above = -p.y
    flare = np.float32(build.femur_half) * (1 - np.float32(0.34) * smooth_step((above - 27) / 38))
    flare = flare - np.float32(1.6) * np.exp(-(((above - 14) / 5) ** 2)) - np.float32(0.0012) * (above - 26) ** 2
    flare = flare + np.float32(1.2) * np.exp(-(((above - 33) / 5) ** 2)) * (p.x > 0)
    bone = smooth_cut(line, np.abs(p.x) - flare, 6.0)
    for side, size in zip((1, -1), knee.spurs_mm[:2], strict=True):
        if size > 0.2:
            edge = side * (build.femur_half - 2.0)
            bone = smooth_union(
                bone, spur(p, (edge, float(condyles(np.asarray([edge]), build, knee)[0]) - 4.5), size, (side, -1)), 1.8
            )
    return bone, line


def place_tibia(p: Plane, build: Build, knee: Arthritis) -> tuple[Field, Field]:
    """Tibia under its plateau, flaring from the shaft."""
    line = plateau(p.x, build, knee) - p.y
    below = np.maximum(p.y, 0)
    half = np.float32(build.tibia_half) * (np.float32(0.60) + np.float32(0.40) * np.exp(-((below / 27) ** 1.7)))
    bone = smooth_cut(line * np.float32(0.93), np.abs(p.x) - half, 2.6)
    for side, size in zip((1, -1), knee.spurs_mm[2:], strict=True):
        if size > 0.2:
            edge = side * (build.tibia_half - 1.5)
            bone = smooth_union(
                bone, spur(p, (edge, float(plateau(np.asarray([edge]), build, knee)[0]) + 2.8), size, (side, -1)), 1.8
            )
    return bone, line


def attenuate(p: Plane, distance: Field, depth_mm: float, rim: float) -> Field:
    """Bone in the beam, 0–1: thin at the edge, with a bright cortex, full towards the middle."""
    inside = np.maximum(-distance, 0)
    bulk = np.float32(0.45) + np.float32(0.55) * (1 - np.exp(-inside / np.float32(depth_mm)))
    bone: Field = coverage(distance, 1.2 * p.pixel_mm) * (bulk + np.float32(rim) * np.exp(-inside / np.float32(1.1)))
    return bone


def trabeculae(p: Plane, grain: Lattice) -> Field:
    """Fine, mostly vertical struts, and slow changes of density."""
    struts = grain.at(p.x + grain.at(p.x, p.y, 9.0), p.y, (0.9, 6.0))
    spots = grain.at(p.x, p.y + 31, (1.8, 2.2))
    slow = grain.at(p.x + 5, p.y + 11, 16.0)
    return np.asarray(1 + np.float32(0.06) * struts + np.float32(0.025) * spots + np.float32(0.06) * slow)


def small_bones(p: Plane, build: Build) -> Field:
    """Fibula next to and behind the tibia; patella, faint, in front of the femur."""
    edge = -(build.tibia_half * 0.84 + build.fibula[0])
    head = ellipse(p, (edge, build.fibula[1] + 7), (8.0, 9.5))
    middle = np.float32(edge) + np.float32(0.10) * (p.y - 30)
    shaft = np.maximum(np.abs(p.x - middle) - 5, np.float32(build.fibula[1] + 8) - p.y)
    cap = ellipse(p, (-build.patella[0], -build.patella[1]), (build.patella[2], build.patella[2] * 0.95))
    fibula = attenuate(p, smooth_union(head, shaft, 4.0), 5.0, 0.4)
    return np.float32(0.38) * fibula + np.float32(0.12) * attenuate(p, cap, 6.0, 0.25)


def expose(p: Plane, bones: Bones, build: Build, knee: Arthritis, rng: np.random.Generator) -> Field:
    """Attenuation along the beam: soft tissue, both bones, fibula, patella, and the changes of osteoarthritis."""
    grain = Lattice(rng, 64)
    across = p.x / np.float32(build.leg_half) + np.float32(0.04) * grain.at(p.x * 0, p.y, 30.0)
    flesh = np.float32(0.43) * np.sqrt(np.clip(1 - across * across, 0, 1))
    flesh = flesh * (1 + np.float32(0.08) * grain.at(p.x, p.y, 18.0))
    femur = attenuate(p, bones.femur, 9.0, 0.10) * (1 + np.float32(0.08) * np.clip(-p.y / 40, 0, 1))
    tibia = attenuate(p, bones.tibia, 8.0, 0.12)
    # Spurs that overlap in the image are at different depths: together they attenuate less than two whole bones.
    solid = femur + tibia - np.float32(0.75) * femur * tibia + small_bones(p, build)
    film = flesh + np.float32(0.28 * build.density) * solid * trabeculae(p, grain)
    film = film + subchondral(p, bones, knee, grain) + scars(p, bones, grain)
    return np.asarray(film - lucencies(p, bones, knee, rng))


def subchondral(p: Plane, bones: Bones, knee: Arthritis, grain: Lattice) -> Field:
    """The white lines under the cartilage: thin in healthy knees, thick and dense in the worse compartment with sclerosis."""
    worse = -1 if knee.is_lateral else 1
    there = smooth_step((worse * p.x - 6) / 10) * smooth_step((40 - worse * p.x) / 8)
    film: Field = np.zeros_like(p.x)
    for line, bone, plain in ((bones.tibial_line, bones.tibia, 0.12), (bones.femoral_line, bones.femur, 0.06)):
        depth = np.maximum(-line, 0)
        inside = coverage(bone, 1.2 * p.pixel_mm)
        patchy = 1 + np.float32(0.3) * grain.at(p.x, p.y, 7.0)
        film += inside * np.float32(plain) * np.exp(-((depth / np.float32(1.5)) ** 2)) * patchy
        thick = np.float32(2.0 + 3.5 * knee.sclerosis) * (1 + np.float32(0.3) * grain.at(p.x, p.x, 6.0))
        film += inside * there * np.float32(0.22 * knee.sclerosis) * np.exp(-((depth / thick) ** 2))
    return film


def scars(p: Plane, bones: Bones, grain: Lattice) -> Field:
    """Faint horizontal lines where the growth plates closed, the far rim of the plateau, the notch's walls on edge."""
    ripple = grain.at(p.x, p.x * 0, 9.0)
    tibial = np.abs(p.y - 17 + np.float32(0.006) * p.x * p.x - ripple) - np.float32(0.5)
    femoral = np.abs(p.y + 33 - np.float32(0.006) * p.x * p.x - ripple) - np.float32(0.5)
    rim = np.abs(bones.tibial_line + 4.5 - np.float32(0.0022) * p.x * p.x) - np.float32(0.4)
    walls = np.abs(np.abs(p.x) - 12 - np.float32(0.08) * (p.y + 20)) - np.float32(0.5)
    walls = np.maximum(walls, np.abs(p.y + 17) - 9)
    film = np.float32(0.025) * coverage(tibial, 2.0) * coverage(bones.tibia + 3, 4.0)
    film = film + np.float32(0.025) * coverage(femoral, 2.0) * coverage(bones.femur + 3, 4.0)
    film = film + np.float32(0.035) * coverage(rim, 1.5) * coverage(bones.tibia + 1, 2.0) * (np.abs(p.x) > 12)
    return film + np.float32(0.02) * coverage(walls, 2.0) * coverage(bones.femur, 2.0)


def lucencies(p: Plane, bones: Bones, knee: Arthritis, rng: np.random.Generator) -> Field:
    """Subchondral cysts: dark spots with a rim under the worse plateau."""
    film: Field = np.zeros_like(p.x)
    for _ in range(knee.cysts):
        x = float(rng.uniform(14, 32)) * (-1 if knee.is_lateral else 1)
        radius = float(rng.uniform(1.5, 3.0))
        hole = ellipse(p, (x, knee.deformity_mm + 3 + radius), (radius, radius * 0.85))
        film += coverage(bones.tibia, 1.0) * (
            np.float32(0.10) * coverage(hole, 1.5) - np.float32(0.05) * coverage(np.abs(hole), 1.2)
        )
    return film


def develop(film: Field, p: Plane, exposure: Exposure, rng: np.random.Generator) -> Image:
    """Beam, display curve, noise, eight bits."""
    beam = film + np.float32(exposure.heel[0]) * p.x / 49 + np.float32(exposure.heel[1]) * p.y / 49
    noisy = beam + np.float32(exposure.noise) * rng.standard_normal(film.shape, dtype=np.float32)
    level = np.clip(
        (noisy - np.float32(0.5)) * np.float32(exposure.contrast) + np.float32(0.5 + exposure.brightness), 0, 1
    )
    shown = level ** np.float32(exposure.gamma)
    image: Image = np.clip((1 - shown if exposure.is_negative else shown) * 255, 0, 255).astype(np.uint8)
    return image


def draw_radiograph(
    *, seed: int, patient: int, side: Literal["L", "R"], size: int = 224, negatives: float = 0.0
) -> Radiograph:
    """One knee of one patient, `size` × `size` pixels; depends only on these arguments."""
    person = np.random.default_rng(np.random.SeedSequence([seed, XRAY_STREAM, patient]))
    grades, build = draw_grades(person), draw_build(person)
    rng = np.random.default_rng(np.random.SeedSequence([seed, XRAY_STREAM, patient, "LR".index(side) + 1]))
    knee, exposure = draw_arthritis(rng, grades["LR".index(side)]), draw_exposure(rng, negatives)
    p = plane(size, FILM_MM, turn=exposure.turn, shift_mm=exposure.shift, scale=exposure.scale)
    bones = Bones(
        *(
            field
            for pair in zip(place_femur(p, build, knee), place_tibia(p, build, knee), strict=True)
            for field in pair
        )
    )
    image = develop(expose(p, bones, build, knee, rng), p, exposure, rng)
    width = max(build.femur_half, build.tibia_half) + 0.6 * max(knee.spurs_mm)
    band = (bones.femoral_line > -BAND_MM) & (bones.tibial_line > -BAND_MM) & (np.abs(p.x) < width)
    mask: Image = band.astype(np.uint8)
    if side == "L":
        image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    return Radiograph(image, mask, describe(knee, build, exposure))


def describe(knee: Arthritis, build: Build, exposure: Exposure) -> RadiographTruth:
    """The drawn parameters of a film; soft tissue is the leg's width over the condyles', density 1 on average."""
    return RadiographTruth(
        grade=knee.grade,
        joint_space_medial_mm=knee.medial_mm,
        joint_space_lateral_mm=knee.lateral_mm,
        osteophyte_femur_medial_mm=knee.spurs_mm[0],
        osteophyte_femur_lateral_mm=knee.spurs_mm[1],
        osteophyte_tibia_medial_mm=knee.spurs_mm[2],
        osteophyte_tibia_lateral_mm=knee.spurs_mm[3],
        sclerosis=knee.sclerosis,
        deformity_mm=knee.deformity_mm,
        cysts=knee.cysts,
        is_lateral=knee.is_lateral,
        condyles_mm=2 * build.femur_half,
        spines_mm=sum(build.spines) / 2,
        notch_mm=build.notch[0],
        patella_lateral_mm=build.patella[0],
        patella_height_mm=build.patella[1],
        fibula_mm=build.fibula[1],
        soft_tissue=build.leg_half / build.femur_half,
        density=build.density,
        is_overexposed=exposure.brightness > 0.1,
        is_negative=exposure.is_negative,
    )
