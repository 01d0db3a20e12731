"""Fit and measure the knee detector (``knee/images/joints.py``): `python -m experiments.knee_detector fit`.

`fit` draws films of the phantom, fits the weights in closed form (ridge regressions, about ten minutes on two cores) and writes
`knee/images/joints.npz`. `measure` draws other films and reports how many knees are found, where, and with which side.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from knee.images import joints
from knee.images.joint_features import CHANNELS, MIRRORED, Values, flipped
from knee.phantom.scenes import Scene, SceneKnee, draw_scene

FIT_SEED, TEST_SEED = 1000, 2000
Film = tuple[Values, list[tuple[float, float, float, str]]]
"""An image and its knees: x, y, width, side."""


def draw_films(seed: int, count: int, processes: int, *, small: bool) -> list[Scene]:
    """Films 0, 1, … of a seed; ``small``: 150 to 420 pixels, for fitting."""
    longest = [int(np.random.default_rng(number).integers(150, 420)) if small else None for number in range(count)]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(partial(_draw, seed), range(count), longest, chunksize=5))


def _draw(seed: int, number: int, longest: int | None) -> Scene:
    return draw_scene(seed=seed, number=number, longest=longest)


def varied(image: Values, rng: np.random.Generator) -> Values:
    """Uneven illumination, over-exposure, blur, noise."""
    height, width = image.shape
    if rng.random() < 0.5:
        coarse = rng.uniform(-60, 60, (3, 3)).astype(np.float32)
        image = image + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        image = np.minimum(image, np.float32(np.quantile(image, rng.uniform(0.4, 0.95))))
    if rng.random() < 0.4:
        image = np.asarray(
            cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6) * max(width, height) / 250), np.float32
        )
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(1, 8), image.shape).astype(np.float32)
    return np.asarray(image, np.float32)


def cropped(film: Film, rng: np.random.Generator) -> Film:
    """One knee of a film, tightly cropped."""
    image, knees = film
    x, y, width, side = knees[int(rng.integers(len(knees)))]
    left, right = x - width * rng.uniform(0.5, 0.75), x + width * rng.uniform(0.5, 0.75)
    top, bottom = y - width * rng.uniform(0.5, 0.8), y + width * rng.uniform(0.35, 0.7)
    start = max(0, round(top)), max(0, round(left))
    part = np.ascontiguousarray(image[start[0] : round(bottom), start[1] : round(right)])
    return part, [(x - start[1], y - start[0], width, side)]


def mounted(parts: Sequence[Film], rng: np.random.Generator) -> Film:
    """One or two crops side by side on a dark or bright canvas: collimated films, and pictures put together from two."""
    shapes = [part.shape for part, _ in parts]
    size = max(max(shape) for shape in shapes)
    top, bottom, left, right = (int(room) for room in rng.uniform(0.02, 0.3, 4) * size)
    gap = int(rng.uniform(0.02, 0.5) * size)
    height = top + bottom + max(shape[0] for shape in shapes)
    width = left + right + sum(shape[1] for shape in shapes) + gap * (len(parts) - 1)
    level = float(rng.choice([rng.uniform(0, 30), rng.uniform(200, 255)], p=[0.8, 0.2]))
    canvas = (level + rng.normal(0, rng.uniform(0, 3), (height, width))).astype(np.float32)
    knees = []
    for part, inside in parts:
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        knees += [(x + left, y + top, size, side) for x, y, size, side in inside]
        left += part.shape[1] + gap
    return canvas, knees


def make_films(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Film]:
    """Varied films, and tight crops of most of them, in random order."""
    films: list[Film] = []
    for scene in scenes:
        image = scene.image.astype(np.float32)
        film: Film = image, [(knee.x, knee.y, knee.width, knee.side) for knee in scene.knees]
        films.append((varied(image, rng) if rng.random() < 0.6 else image, film[1]))
        if scene.knees and rng.random() < 0.8:
            parts = [cropped(film, rng) for _ in range(int(rng.integers(1, 3)))]
            parts = [(varied(part, rng), knees) for part, knees in parts if min(part.shape) > 40]
            if parts:
                films.append(mounted(parts, rng) if rng.random() < 0.6 else parts[0])
    return [films[number] for number in rng.permutation(len(films))]


def is_other(x: float, y: float, width: float, film: Film, *, near: float, size: float) -> bool:
    """Whether a window is not that of one of the film's knees."""
    return not any(
        max(abs(x - knee[0]), abs(y - knee[1])) < near * knee[2] and abs(math.log(width / knee[2])) < size
        for knee in film[1]
    )


def jittered(knee: tuple[float, float, float, str], rng: np.random.Generator) -> tuple[float, float, float]:
    """A window near a knee, as the filter finds it."""
    x, y, width, _ = knee
    size = width * math.exp(float(np.clip(rng.normal(0, 0.06), -0.18, 0.18)))
    dx, dy = np.clip(rng.normal(0, 0.03, 2), -0.08, 0.08) * size
    return x + float(dx), y + float(dy), size


def ridge(
    features: NDArray[Any], targets: NDArray[Any], penalty: float, weight: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights and constants of a linear regression (n, d) → (n, k)."""
    share = np.ones(len(features)) if weight is None else weight
    share = (share / share.sum()).astype(np.float32)[:, None]
    mean, level = (share * features).sum(0), (share * targets).sum(0)
    centered = (features - mean) * np.sqrt(share)
    gram = (centered.T @ centered).astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram, centered.T @ (np.sqrt(share) * (targets - level)))
    return solved, level - mean @ solved


def balanced(labels: NDArray[Any]) -> NDArray[Any]:
    """Weights that give both classes the same total."""
    return np.asarray(np.where(labels > 0, 1 / (labels > 0).sum(), 1 / (labels < 0).sum()))


def fit_filter(films: Sequence[Film], rng: np.random.Generator, rounds: int = 3) -> tuple[Values, float]:
    """The filter: knees against random windows, then three times also against what it wrongly finds in other films."""
    windows, labels = [], []
    for film in films:
        for knee in film[1] * 2:
            one = joints.features_at(film[0], *jittered(knee, rng), joints.FILTER)
            windows += [one, flipped(one)]
            labels += [1, 1]
        for _ in range(8):
            height, width = film[0].shape
            size = math.exp(rng.uniform(math.log(0.12), 0)) * min(height, width)
            place = float(rng.uniform(0, width)), float(rng.uniform(0, height)), size
            if is_other(*place, film, near=0.3, size=0.35):
                windows.append(joints.features_at(film[0], *place, joints.FILTER))
                labels.append(-1)
    share = len(films) // rounds
    for number in range(rounds + 1):
        known = np.array(labels)
        flat = np.stack(windows).reshape(len(windows), -1)
        solved, bias = ridge(flat, known[:, None].astype(np.float32), 0.3, balanced(known))
        template = solved.reshape(*joints.FILTER, CHANNELS)
        found = ((template + template[:, ::-1] * MIRRORED) / 2).astype(np.float32), float(bias[0])
        for film in films[number * share : (number + 1) * share] if number < rounds else ():
            for score, x, y, size in joints.search(film[0], joints.pyramid(film[0]), found):
                if score > -0.8 and is_other(x, y, size, film, near=0.2, size=0.3):
                    one = joints.features_at(film[0], x, y, size, joints.FILTER)
                    windows += [one, flipped(one)]
                    labels += [-1, -1]
        print(f"round {number}: {len(windows)} windows, {sum(label < 0 for label in labels)} of them not of knees")
    return found


def fit_close_up(films: Sequence[Film], found: tuple[Values, float], rng: np.random.Generator) -> dict[str, Any]:
    """Position, size, score and side from the window around a joint."""
    windows, offsets, sides = [], [], []
    others = []
    for film in films:
        for knee in film[1] * 4:
            x, y, size = jittered(knee, rng)
            windows.append(joints.features_at(film[0], x, y, size))
            offsets.append(((knee[0] - x) / size, (knee[1] - y) / size, math.log(knee[2] / size)))
            sides.append(1 if knee[3] == "R" else -1)
        for score, x, y, size in joints.search(film[0], joints.pyramid(film[0]), found, most=4):
            if score > -0.6 and is_other(x, y, size, film, near=0.2, size=0.3):
                others.append(joints.features_at(film[0], x, y, size))
    knees, apart, truth = np.stack(windows), np.array(offsets, np.float32), np.array(sides, np.float32)
    flat, mirror = knees.reshape(len(knees), -1), flipped(knees).reshape(len(knees), -1)
    offset, offset_bias = ridge(
        np.concatenate([flat, mirror]), np.concatenate([apart, apart * np.array([-1, 1, 1], np.float32)]), 1.0
    )
    antisymmetric = flat - mirror
    side, _ = ridge(np.concatenate([antisymmetric, -antisymmetric]), np.concatenate([truth, -truth])[:, None], 30.0)
    other = np.stack(others)
    negative = np.concatenate([other, flipped(other)]).reshape(2 * len(other), -1)
    labels = np.repeat([1, -1], [2 * len(flat), len(negative)])
    everything = np.concatenate([flat, mirror, negative])
    scoring, scoring_bias = ridge(everything, labels[:, None].astype(np.float32), 1.0, balanced(labels))
    print(f"{len(flat)} windows of knees, {len(negative)} of others")
    fitted = {
        "filter": found[0],
        "filter_bias": np.array([found[1]]),
        "offset": offset,
        "offset_bias": offset_bias,
        "score": scoring[:, 0],
        "score_bias": scoring_bias,
        "side": side[:, 0],
        "scales": np.ones(2),
    }
    known = joints.scores(
        everything, joints.Weights(**{name: value.astype(np.float32) for name, value in fitted.items()})
    )
    fitted["scales"] = np.array([log_odds(known, labels), log_odds(antisymmetric @ side[:, 0], truth)])
    return fitted


def log_odds(values: NDArray[Any], labels: NDArray[Any]) -> float:
    """The factor that turns values into log odds of the label 1 against −1, at most 20."""
    margins = values * labels
    factors = np.linspace(0.2, 20, 100)
    return float(factors[np.argmin([np.logaddexp(0, -factor * margins).mean() for factor in factors])])


def fit(count: int, processes: int) -> None:
    """Fit all weights and write ``joints.npz``."""
    rng = np.random.default_rng(FIT_SEED)
    films = make_films(draw_films(FIT_SEED, count, processes, small=True), rng)
    found = fit_filter(films, rng)
    stored = fit_close_up(films, found, rng)
    np.savez_compressed(
        Path(joints.__file__).with_suffix(".npz"), **{name: value.astype(np.float16) for name, value in stored.items()}
    )


def edge_error(found: joints.KneeBox, knee: SceneKnee) -> float:
    """The largest distance between the edges of the found and the true box, as a share of the true box's side."""
    half = joints.BOX_WIDTHS / 2
    across, down, size = abs(found.x - knee.x), abs(found.y - knee.y), abs(found.width - knee.width) * half
    return (max(across, down) + size) / (joints.BOX_WIDTHS * knee.width)


def measure(count: int, processes: int, *, spacing: bool) -> None:
    """Report on films of another seed: knees found within 10 %, sides, films with the right number of knees."""
    scenes = draw_films(TEST_SEED, count, processes, small=False)
    errors, sides, counts = [], [], []
    for scene in scenes:
        found = joints.find_knees(scene.image, (scene.spacing_mm, scene.spacing_mm) if spacing else None)
        counts.append(len(found) == len(scene.knees))
        for knee in scene.knees:
            nearest = min(found, key=lambda one: edge_error(one, knee), default=None)
            errors.append(edge_error(nearest, knee) if nearest else math.inf)
            if nearest and errors[-1] < 0.1:
                sides.append(nearest.side == knee.side)
    close = np.array(errors) < 0.1
    print(
        f"{count} films, {len(errors)} knees: {close.sum()} ({close.mean():.1%}) with all edges within 10 % of the box"
    )
    print(
        f"right side: {sum(sides)} of {len(sides)} ({np.mean(sides):.1%}); right number: {np.mean(counts):.1%} of films"
    )
    print(f"edge error: median {np.median(errors):.3f}, 95th percentile {np.quantile(errors, 0.95):.3f}")


def main() -> None:
    """Fit or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "measure"))
    parser.add_argument("--films", type=int, help="number of films (default: 700 to fit, 330 to measure)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--spacing", action="store_true", help="measure with the pixel spacing known")
    options = parser.parse_args()
    if options.what == "fit":
        fit(options.films or 700, options.processes)
    else:
        measure(options.films or 330, options.processes, spacing=options.spacing)


if __name__ == "__main__":
    main()
