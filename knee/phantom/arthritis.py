"""Knees of the radiograph phantom: a Kellgren–Lawrence grade with matching joint space, osteophytes and sclerosis.

Ranges follow the definitions: 1 doubtful narrowing, possible osteophyte; 2 definite osteophyte, possible narrowing;
3 several osteophytes, definite narrowing, some sclerosis, possible deformity; 4 large osteophytes, marked narrowing,
severe sclerosis, definite deformity. Neighboring grades overlap, as they do between readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRADE_SHARES = (0.28, 0.18, 0.24, 0.18, 0.12)
AGREEMENT = (
    0.85  # correlation of the latent variables behind the grades of a patient's two knees; about half the pairs agree
)
JOINT_SPACE_MM = ((4.3, 6.0), (3.7, 5.4), (3.2, 4.9), (1.5, 3.2), (0.0, 1.2))  # worse compartment, by grade
SPUR_MM = ((0.0, 0.4), (0.3, 1.5), (2.0, 4.5), (3.0, 6.0), (5.0, 8.5))  # largest osteophyte, by grade
SCLEROSIS = ((0.0, 0.12), (0.0, 0.2), (0.1, 0.35), (0.4, 0.75), (0.75, 1.0))
DEFORMITY_MM = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.3), (0.2, 1.5), (1.8, 4.0))


@dataclass(frozen=True, kw_only=True)
class Arthritis:
    """The findings that a reader would grade in one knee."""

    grade: int
    is_lateral: bool  # the worse compartment
    medial_mm: float
    lateral_mm: float
    spurs_mm: tuple[float, float, float, float]  # femur medial, femur lateral, tibia medial, tibia lateral
    sclerosis: float  # 0–1
    deformity_mm: float  # depression of the worse plateau
    cysts: int


def draw_arthritis(rng: np.random.Generator, grade: int) -> Arthritis:
    """One knee of this grade; in five of six knees the medial compartment is worse."""
    lateral = bool(rng.random() < 1 / 6)
    worse = float(rng.uniform(*JOINT_SPACE_MM[grade]))
    # The spared compartment stays wide, and widens further if the knee tilts towards the other.
    spared = float(rng.uniform(4.8, 6.8)) + (0.0 if grade < 3 else 0.6) - (1.2 if grade == 4 else 0.0) * rng.random()
    largest = float(rng.uniform(*SPUR_MM[grade]))
    others = rng.uniform(0.0, 0.5, 4) if grade < 3 else rng.uniform(0.45, 1.0, 4)
    spurs = largest * others
    corner = (3 if lateral else 2) if rng.random() < 0.6 else int(rng.integers(4))
    spurs[corner] = largest
    return Arthritis(
        grade=grade,
        is_lateral=lateral,
        medial_mm=spared if lateral else worse,
        lateral_mm=worse if lateral else spared,
        spurs_mm=(float(spurs[0]), float(spurs[1]), float(spurs[2]), float(spurs[3])),
        sclerosis=float(rng.uniform(*SCLEROSIS[grade])),
        deformity_mm=float(rng.uniform(*DEFORMITY_MM[grade])),
        cysts=int(rng.poisson((0.0, 0.0, 0.1, 0.6, 1.5)[grade])),
    )


def draw_grades(rng: np.random.Generator) -> tuple[int, int]:
    """Grades of the left and the right knee of one patient, equal more often than by chance."""
    shared, own = rng.standard_normal(), rng.standard_normal(2)
    burden = AGREEMENT**0.5 * shared + (1 - AGREEMENT) ** 0.5 * own
    limits = (-0.583, -0.100, 0.524, 1.175)  # normal quantiles of the cumulated GRADE_SHARES
    return int(np.searchsorted(limits, burden[0])), int(np.searchsorted(limits, burden[1]))


@dataclass(frozen=True, kw_only=True)
class Build:
    """Size and shape of one patient's bones, the same in both knees; mm."""

    femur_half: float
    tibia_half: float
    notch: tuple[float, float]  # height and half width
    spines: tuple[float, float]  # medial and lateral height
    roundness: float
    dish: tuple[float, float]  # depth of the medial and lateral plateau
    leg_half: float
    patella: tuple[float, float, float]  # lateral shift, height above the joint, radius
    fibula: tuple[float, float]  # distance from the tibia's edge, depth under the plateau
    density: float


def draw_build(rng: np.random.Generator) -> Build:
    """One patient's bones."""
    femur = float(rng.uniform(37, 43))
    return Build(
        femur_half=femur,
        tibia_half=femur * float(rng.uniform(0.94, 1.02)),
        notch=(float(rng.uniform(8, 13)), float(rng.uniform(8, 10.5))),
        spines=(float(rng.uniform(6, 9.5)), float(rng.uniform(5, 8))),
        roundness=float(rng.uniform(0.005, 0.010)),
        dish=(float(rng.uniform(0.8, 2.2)), float(rng.uniform(-0.2, 1.2))),
        leg_half=femur * float(rng.uniform(1.16, 1.45)),
        patella=(float(rng.uniform(-4, 7)), float(rng.uniform(22, 36)), float(rng.uniform(17, 21))),
        fibula=(float(rng.uniform(-3, 5)), float(rng.uniform(15, 23))),
        density=float(rng.uniform(0.85, 1.15)),
    )


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Acquisition of one radiograph: pose, beam and display."""

    turn: float
    shift: tuple[float, float]
    scale: float
    brightness: float
    contrast: float
    gamma: float
    heel: tuple[float, float]  # slope of the beam across the film
    noise: float
    is_negative: bool


def draw_exposure(rng: np.random.Generator, negatives: float) -> Exposure:
    """One acquisition; a fraction `negatives` are photographic negatives, about one in seven is over-exposed."""
    bright = bool(rng.random() < 0.15)
    return Exposure(
        turn=float(rng.normal(0, 0.035)),
        shift=(float(rng.normal(0, 2.0)), float(rng.uniform(2, 9))),
        scale=float(rng.uniform(0.95, 1.06)),
        brightness=float(rng.uniform(0.15, 0.38) if bright else rng.uniform(-0.06, 0.08)),
        contrast=float(rng.uniform(0.75, 1.25)),
        gamma=float(rng.uniform(0.8, 1.3)),
        heel=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.06))),
        noise=float(rng.uniform(0.008, 0.022)),
        is_negative=bool(rng.random() < negatives),
    )
