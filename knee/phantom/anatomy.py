"""Random anatomy of the MR phantom's patients and slices; `mr` renders it.

Frame: millimetres, anterior is negative x (left on the page, as sagittal slices are shown), y runs distally, and the
femoral and tibial cartilage touch near the origin. Angles on the condyle are radians from straight down, positive
to posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NORMAL, PARTIAL, FULL = 0, 1, 2
PARTIAL_DEPTH = (0.38, 0.56)  # fraction of the thickness lost in a partial-thickness defect
SEEN_WIDTH = 0.2  # a spot cut this close to its end is not drawn
LESION_WIDTH_MM = (8.0, 13.5)


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A focal loss of cartilage in one slice; `depth` 0 is none, 1 reaches the bone."""

    depth: float
    place: float  # femur: angle in radians; tibia: x in mm
    width_mm: float
    fill: float  # fraction of fluid in the defect; the rest is debris as grey as the deep layer of cartilage

    @property
    def grade(self) -> int:
        """0 normal, 1 partial-thickness, 2 full-thickness."""
        return NORMAL if self.depth == 0 else FULL if self.depth == 1 else PARTIAL


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """The defect of a whole knee: depth by slice, and the change of place and width between slices."""

    depths: tuple[float, ...]
    widths_mm: tuple[float, ...]
    place: float
    drift: float  # change of place per slice
    fill: float

    def in_slice(self, index: int) -> Defect:
        """The part of the lesion that slice `index` cuts."""
        middle = (len(self.depths) - 1) / 2
        place = self.place + self.drift * (index - middle)
        return Defect(depth=self.depths[index], place=place, width_mm=self.widths_mm[index], fill=self.fill)


def draw_lesion(
    rng: np.random.Generator, slices: int, *, chances: tuple[float, float], places: tuple[float, float], drift: float
) -> Lesion:
    """A lesion that is absent, partial or full (`chances`: of the last two); a full one has a partial rim.

    A healthy knee has a lesion of depth 0 everywhere. Extents are fractions of the stack, so any number of slices works.
    """
    kind = int(np.searchsorted(np.cumsum([1 - sum(chances), chances[0]]), rng.random(), side="right"))
    centre = rng.uniform(0.22, 0.78) * slices
    core = slices * (0.0, rng.uniform(0.26, 0.42), rng.uniform(0.24, 0.40))[kind]
    rim = slices * (rng.uniform(0.08, 0.17) if kind == FULL else 0.0)
    widest = rng.uniform(9.0, LESION_WIDTH_MM[1])
    deepest = rng.uniform(*PARTIAL_DEPTH)
    depths, widths = [], []
    for index in range(slices):
        away = abs(index + 0.5 - centre)
        inside = 1 - min(1.0, away / max(core + rim, 1e-6))
        depth = float(np.clip(deepest + rng.uniform(-0.06, 0.06), *PARTIAL_DEPTH))
        depths.append(0.0 if away >= core + rim else 1.0 if kind == FULL and away < core else depth)
        widths.append(float(max(LESION_WIDTH_MM[0], widest * (0.55 + 0.45 * inside) * rng.uniform(0.93, 1.07))))
    return Lesion(
        depths=tuple(depths),
        widths_mm=tuple(min(width, LESION_WIDTH_MM[1]) for width in widths),
        place=float(rng.uniform(*places)),
        drift=float(rng.uniform(-drift, drift)),
        fill=float(rng.uniform(0.85, 1.0)),
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Bones, cartilage and soft tissue of one patient, in mm unless noted otherwise."""

    turn: float
    shift: tuple[float, float]
    scale: float
    anterior: float  # half axes of the condyle
    posterior: float
    distal: float
    waves: tuple[float, ...]  # four relative waves on the condyle's outline
    femoral_cartilage: float
    tibial_cartilage: float
    thickness_waves: tuple[float, ...]
    plate_ends: tuple[float, float]  # anterior and posterior end of the femoral cartilage, radians
    dish: float  # curvature of the plateau, 1/mm; negative is convex, as laterally
    slope: float
    tibia: tuple[float, float]  # anterior and posterior edge
    gap: float
    meniscus_tips: tuple[float, float]
    skin: float
    tendon: float
    patella: tuple[float, float]
    scar: float
    is_lateral: bool


def draw_shape(rng: np.random.Generator) -> Shape:
    """One patient's anatomy; sizes as in adult knees, with rather thick cartilage so that it is visible at 96 pixels."""
    lateral = bool(rng.random() < 0.5)
    return Shape(
        turn=float(rng.normal(0, 0.10)),
        shift=(float(rng.uniform(-4, 5)), float(rng.uniform(0, 9))),
        scale=float(rng.uniform(0.93, 1.07)),
        anterior=float(rng.uniform(28, 33)),
        posterior=float(rng.uniform(25, 31)),
        distal=float(rng.uniform(22, 27)),
        waves=tuple(float(v) for v in rng.normal(0, 0.012, 4)),
        femoral_cartilage=float(rng.uniform(3.6, 4.8)),
        tibial_cartilage=float(rng.uniform(3.0, 4.3)),
        thickness_waves=tuple(float(v) for v in rng.uniform(-0.12, 0.12, 4)),
        plate_ends=(float(-rng.uniform(1.35, 1.75)), float(rng.uniform(1.65, 2.05))),
        dish=float(rng.uniform(-0.008, -0.001) if lateral else rng.uniform(0.002, 0.011)),
        slope=float(rng.uniform(-0.02, 0.12)),
        tibia=(float(-rng.uniform(25, 30)), float(rng.uniform(23, 28))),
        gap=float(rng.uniform(0.3, 0.9)),
        meniscus_tips=(float(rng.uniform(9, 13)), float(rng.uniform(7, 12))),
        skin=float(rng.uniform(41, 52)),
        tendon=float(rng.uniform(2.5, 4.5)),
        patella=(float(-rng.uniform(38, 43)), float(-rng.uniform(44, 54))),
        scar=float(-rng.uniform(38, 46)),
        is_lateral=lateral,
    )


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Signal of each tissue (1 is joint fluid), and coil shading and noise of one patient's scan."""

    cartilage: float
    marrow: float
    fat: float
    muscle: float
    fluid: float
    meniscus: float
    bias: tuple[float, float, float]
    noise: float
    gain: float


def draw_tissue(rng: np.random.Generator) -> Tissue:
    """Intermediate-weighted, fat-suppressed contrast: fluid white, cartilage grey, marrow dark, menisci black."""
    return Tissue(
        cartilage=float(rng.uniform(0.48, 0.60)),
        marrow=float(rng.uniform(0.19, 0.32)),
        fat=float(rng.uniform(0.22, 0.38)),
        muscle=float(rng.uniform(0.34, 0.48)),
        fluid=float(rng.uniform(0.93, 1.05)),
        meniscus=float(rng.uniform(0.05, 0.11)),
        bias=(float(rng.normal(0, 0.12)), float(rng.normal(0, 0.10)), float(rng.uniform(0.0, 0.25))),
        noise=float(rng.uniform(0.02, 0.04)),
        gain=float(rng.uniform(205, 245)),
    )


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A bright spot: bone cyst, vessel or patch of marrow oedema.

    It is widest in the slice at `depth` (−1 to 1 across the compartment) and vanishes at a distance of `reach`.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    turn: float
    signal: float
    depth: float
    reach: float

    def width_at(self, position: float) -> float:
        """Fraction of its full width in the slice at this position, 0–1."""
        away = (position - self.depth) / self.reach
        return float(np.sqrt(max(0.0, 1 - away * away)))


def draw_blobs(
    rng: np.random.Generator, expected: float, box: tuple[float, float, float, float], radii: tuple[float, float]
) -> tuple[Blob, ...]:
    """A Poisson number of spots in the box (left, top, right, bottom)."""
    return tuple(
        Blob(
            centre=(float(rng.uniform(box[0], box[2])), float(rng.uniform(box[1], box[3]))),
            radii=(float(rng.uniform(*radii)), float(rng.uniform(*radii))),
            turn=float(rng.uniform(0, np.pi)),
            signal=float(rng.uniform(0.7, 1.0)),
            depth=float(rng.uniform(-1, 1)),
            reach=float(rng.uniform(0.35, 1.0)),
        )
        for _ in range(int(rng.poisson(expected)))
    )


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """Distractors: bright spots and tears that are unrelated to the grade."""

    cysts: tuple[Blob, ...]
    oedema: tuple[Blob, ...]
    vessels: tuple[Blob, ...]
    tears: tuple[bool, bool]  # anterior and posterior horn
    tear_slope: float
    effusion_mm: float


def draw_distractors(rng: np.random.Generator) -> Distractors:
    """One patient's distractors, drawn independently of the femoral lesion."""
    femur, tibia = (-22.0, -44.0, 20.0, -12.0), (-18.0, 10.0, 16.0, 26.0)
    return Distractors(
        cysts=draw_blobs(rng, 0.9, femur, (1.2, 3.2)) + draw_blobs(rng, 1.0, tibia, (1.2, 3.2)),
        oedema=draw_blobs(rng, 0.8, (-18, -18, 18, -7), (4, 9)) + draw_blobs(rng, 0.6, (-16, 6, 14, 14), (4, 8)),
        vessels=draw_blobs(rng, 3.0, (31, -45, 46, 40), (1.0, 2.2))
        + draw_blobs(rng, 1.8, (-44, -8, -29, 20), (0.8, 1.6)),
        tears=(bool(rng.random() < 0.3), bool(rng.random() < 0.4)),
        tear_slope=float(rng.uniform(-0.6, 0.6)),
        effusion_mm=float(rng.uniform(0.3, 3.2)),
    )


@dataclass(frozen=True, kw_only=True)
class Patient:
    """All parameters that the slices of one patient share."""

    shape: Shape
    tissue: Tissue
    lesion: Lesion
    tibial_lesion: Lesion
    distractors: Distractors


def draw_patient(rng: np.random.Generator, slices: int) -> Patient:
    """One patient; each part has its own random stream, so the parts are independent."""
    streams = rng.spawn(5)
    return Patient(
        shape=draw_shape(streams[0]),
        tissue=draw_tissue(streams[1]),
        lesion=draw_lesion(streams[2], slices, chances=(0.30, 0.52), places=(-0.80, 0.85), drift=0.03),
        tibial_lesion=draw_lesion(streams[3], slices, chances=(0.25, 0.30), places=(-12.0, 12.0), drift=0.6),
        distractors=draw_distractors(streams[4]),
    )
