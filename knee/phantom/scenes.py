"""Uncropped radiographs of the phantom: both legs, whole legs, single legs off center, and films without a knee.

Every knee of a film is drawn by ``knee.phantom.radiograph``; shafts continue to the film's edge, with hips and ankles in
views of whole legs. Films are displayed as if facing the patient: the patient's right is on the left of the page.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np

from knee.phantom.arthritis import Build, Exposure, draw_arthritis, draw_build, draw_exposure, draw_grades
from knee.phantom.fields import Field, Image, Lattice, Plane, ellipse, smooth_union
from knee.phantom.radiograph import Bones, attenuate, develop, expose, place_femur, place_tibia

SCENE_STREAM = 5
Kind = Literal["both", "whole", "single", "none"]
KINDS: tuple[Kind, ...] = ("both", "whole", "single", "none")
_UPPER_MM, _LOWER_MM = -78.0, 92.0
"""Beyond these distances from the joint the bones continue with an unchanged cross-section."""
_REACH_MM = 95.0
"""Half the width of the strip in which a leg is drawn."""


@dataclass(frozen=True, kw_only=True)
class SceneKnee:
    """A knee of a scene, in pixels of the image."""

    side: Literal["L", "R"]
    x: float
    y: float
    """The middle of the joint line."""
    width: float
    """Width of the bones at the joint: the wider of femur and tibia, without osteophytes."""
    grade: int


class Scene(NamedTuple):
    """One film: `image` uint8 (H, W), its knees from the left of the page to the right, and the size of a pixel in mm."""

    image: Image
    knees: tuple[SceneKnee, ...]
    spacing_mm: float


class Leg(NamedTuple):
    """A leg to be drawn: its position on the film and its pose."""

    side: Literal["L", "R"]
    x_mm: float
    y_mm: float
    turn: float
    scale: float
    aspect: float
    """Stretch of the anatomy across."""


def draw_scene(*, seed: int, number: int, kind: Kind | None = None, longest: int | None = None) -> Scene:
    """Film `number`; depends only on these arguments. `longest`: pixels of the longer side (default: 260 to 900)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, SCENE_STREAM, number]))
    chosen: Kind = kind or KINDS[int(rng.choice(4, p=(0.5, 0.15, 0.25, 0.1)))]
    height_mm, width_mm, legs = _arrange(rng, chosen)
    longest = longest or int(rng.integers(260, 900))
    pixel = max(height_mm, width_mm) / longest
    page = page_plane(round(height_mm / pixel), round(width_mm / pixel), pixel)
    build, grades = _draw_wider_build(rng), draw_grades(rng)
    exposure = replace(draw_exposure(rng, 0.03), turn=0.0, shift=(0.0, 0.0), scale=1.0)
    film: Field = np.zeros_like(page.x)
    knees = []
    for leg in legs:
        grade = grades["LR".index(leg.side)]
        _add_leg(film, page, leg, build, grade, rng, whole=chosen in ("whole", "none"), knee=chosen != "none")
        if chosen != "none":
            across = 2 * max(build.femur_half, build.tibia_half) * leg.scale * leg.aspect
            knees.append(
                SceneKnee(
                    side=leg.side,
                    x=(leg.x_mm + width_mm / 2) / pixel - 0.5,
                    y=(leg.y_mm + height_mm / 2) / pixel - 0.5,
                    width=across / pixel,
                    grade=grade,
                )
            )
    image = _finish(film, page, exposure, rng)
    return Scene(image, tuple(sorted(knees, key=lambda knee: knee.x)), pixel)


def _draw_wider_build(rng: np.random.Generator) -> Build:
    """Bones as in ``draw_build``, with the larger notch and rounder condyles of flexed views, and stouter legs."""
    build = draw_build(rng)
    return replace(
        build,
        notch=(float(rng.uniform(7, 21)), float(rng.uniform(7, 12))),
        spines=(float(rng.uniform(3, 9.5)), float(rng.uniform(3, 8))),
        roundness=float(rng.uniform(0.004, 0.018)),
        leg_half=build.leg_half * float(rng.uniform(1.0, 1.35)),
    )


def page_plane(height: int, width: int, pixel_mm: float) -> Plane:
    """Pixel centers of a film, in mm from its middle."""
    across = (np.arange(width, dtype=np.float32) + np.float32(0.5) - np.float32(width / 2)) * np.float32(pixel_mm)
    down = (np.arange(height, dtype=np.float32) + np.float32(0.5) - np.float32(height / 2)) * np.float32(pixel_mm)
    x, y = np.meshgrid(across, down)
    return Plane(x, y, pixel_mm)


def _arrange(rng: np.random.Generator, kind: Kind) -> tuple[float, float, list[Leg]]:
    """Height and width of the film in mm, and its legs."""

    def leg(side: Literal["L", "R"], x_mm: float, y_mm: float) -> Leg:
        turn = float(rng.normal(0, 0.05))
        return Leg(side, x_mm, y_mm, turn, float(rng.uniform(0.92, 1.12)), float(rng.uniform(0.92, 1.2)))

    if kind == "single":
        height, width = float(rng.uniform(130, 430)), float(rng.uniform(120, 260))
        if rng.random() < 0.4:  # already cropped
            height, width = float(rng.uniform(95, 125)), float(rng.uniform(92, 125))
        side: Literal["L", "R"] = "L" if rng.random() < 0.5 else "R"
        room = max(3.0, width / 2 - 58), max(4.0, height / 2 - 55)
        return height, width, [leg(side, float(rng.uniform(-1, 1)) * room[0], float(rng.uniform(-1, 1)) * room[1])]
    gap = float(rng.uniform(110, 230))
    width = float(rng.uniform(gap + 120, max(gap + 150, 430)))
    height = float(rng.uniform(700, 1000) if kind == "whole" else rng.uniform(160, 430))
    middle = float(rng.uniform(-1, 1)) * (width - gap - 118) / 2
    reach = height * 0.07 if kind == "whole" else max(0.0, height / 2 - 62)
    y = float(rng.uniform(-1, 1)) * reach
    lower = float(rng.normal(0, 5))
    legs = [leg("R", middle - gap / 2, y + lower), leg("L", middle + gap / 2, y - lower)]
    if kind == "none":  # shafts and ankles, or hips: far below or above the joint
        height = float(rng.uniform(180, 300))
        legs = [one._replace(y_mm=float(rng.choice([-1, 1]) * rng.uniform(400, 430))) for one in legs]
        legs[1] = legs[1]._replace(y_mm=legs[0].y_mm)
    return height, width, legs


def _add_leg(
    film: Field, page: Plane, leg: Leg, build: Build, grade: int, rng: np.random.Generator, *, whole: bool, knee: bool
) -> None:
    """Add the attenuation of one leg to a film, in place."""
    arthritis = draw_arthritis(rng, grade)
    middle = page.x[0] - np.float32(leg.x_mm)
    columns = np.flatnonzero(np.abs(middle) < _REACH_MM * 1.25 * leg.scale)
    if not len(columns):
        return
    part = slice(int(columns[0]), int(columns[-1]) + 1)
    across = (page.x[:, part] - np.float32(leg.x_mm)) / np.float32(leg.scale)
    down = (page.y[:, part] - np.float32(leg.y_mm)) / np.float32(leg.scale)
    # The turn fades out along the shafts, so that whole legs stay on the film.
    bend = np.float32(leg.turn) * np.clip(down, -160, 160)
    shape = Lattice(rng)
    x = (across + bend) / np.float32(leg.aspect) + np.float32(2.5) * shape.at(across, down, 45.0)
    y = down - np.float32(leg.turn) * np.clip(across, -80, 80)
    y = y + np.float32(2.5) * (
        shape.at(across + 300, down + 300, 45.0) - shape.at(across * 0 + 300, down * 0 + 300, 45.0)
    )
    if leg.side == "L":
        x = -x
    p = Plane(x, np.clip(y, _UPPER_MM, _LOWER_MM), page.pixel_mm / leg.scale)
    femur, femoral_line = place_femur(p, build, arthritis)
    tibia, tibial_line = place_tibia(p, build, arthritis)
    strip = expose(p, Bones(femur, tibia, femoral_line, tibial_line), build, arthritis, rng)
    if whole or not knee:
        strip = strip + np.float32(0.28 * build.density) * _hip_and_ankle(Plane(x, y, p.pixel_mm))
    film[:, part] = np.maximum(film[:, part], strip)


def _hip_and_ankle(p: Plane) -> Field:
    """The ends of a whole leg: femoral head, trochanter and pelvis above; tibial plafond, malleoli and talus below."""
    head = ellipse(p, (32, -412), (24, 24))
    neck = smooth_union(head, ellipse(p, (-6, -390), (30, 26)), 12)
    pelvis = ellipse(p, (70, -440), (42, 60))
    plafond = np.maximum(ellipse(p, (2, 366), (30, 46)), p.y - 384)
    fibula = ellipse(p, (-30, 382), (9, 30))
    talus = np.maximum(ellipse(p, (2, 410), (26, 30)), 388 - p.y)
    parts = (neck, pelvis, plafond, fibula, talus)
    return np.asarray(sum(np.float32(0.8) * attenuate(p, part, 9.0, 0.15) for part in parts))


def _finish(film: Field, page: Plane, exposure: Exposure, rng: np.random.Generator) -> Image:
    """Develop a film, collimate it, and put markers and sometimes a border on it."""
    extent = max(page.x.max() - page.x.min(), page.y.max() - page.y.min())
    scaled = Plane(page.x * np.float32(98 / extent), page.y * np.float32(98 / extent), page.pixel_mm)
    image = develop(film, scaled, exposure, rng)
    height, width = image.shape
    black = 255 if exposure.is_negative else 0
    if rng.random() < 0.4:  # collimation
        edges = (rng.uniform(0, 0.05, 4) * (height, height, width, width)).astype(int)
        shut = np.ones(image.shape, dtype=bool)
        shut[edges[0] : height - edges[1], edges[2] : width - edges[3]] = False
        image[shut] = black
    for letter in ("R", "L", "", "")[int(rng.integers(3)) :]:
        at = int(rng.uniform(0.02, 0.9) * width), int(rng.uniform(0.05, 0.98) * height)
        size = max(0.3, width / 500 * float(rng.uniform(0.5, 1.2)))
        cv2.putText(
            image, letter, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255 - black, max(1, round(2 * size)), cv2.LINE_AA
        )
    return image
