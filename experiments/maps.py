"""Do the maps point at what decides the grade? Attention and evidence map of a trained run, measured.

    dcmt phantom data/phantom --seed 0
    python train.py --config configs/phantom.yaml --config configs/rows/supervised.yaml --fit.steps 1000 --name maps
    python -m experiments.maps runs/maps --truth data/phantom --out docs/results/maps_mr.md

With ``--truth`` (a folder of ``dcmt phantom``), on correctly graded test images with a lesion: how often the hottest point
lies in the lesion, and the share of the map's sum inside it. On MR slices the lesion is a disc of the defect's width, on
radiographs the worse half of the joint. Compared with random weights, with the mean place of lesions, and with chance within
the mask and within the image. Without ``--truth``: deletion and insertion curves (Petsiuk et al. 2018, arXiv:1806.07421) on
the test images, where no lesion is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcmt.train import build_grader
from dcmt.trained.loaded import LoadedRun, load_data, load_run
from knee.data.prepare import KneeData, Rows
from knee.evaluation.evidence import BLUR, gaussian_blur
from knee.evaluation.predictions import iterate_attention
from knee.io.files import write_text
from knee.phantom.mr import EXTENT_MM

Maps = NDArray[np.float64]
STEPS = 16
MOST_REMOVED = 0.5
LEAST_SPUR_MM = 2.0


def main(arguments: list[str]) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--truth", type=Path, help="the phantom's folder, with truth.csv")
    parser.add_argument("--images", type=int, default=200, help="evenly spaced test images (default 200)")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    loaded = load_run(options.run, checkpoint="best", device="cpu")
    data = load_data(loaded)
    table = on_phantom(loaded, data, options) if options.truth else on_radiographs(loaded, data, options.images)
    sys.stdout.write(table)
    if options.out:
        write_text(options.out, table, force=True)


def maps_of(network: Any, data: KneeData, rows: Rows, precision: Any) -> tuple[dict[str, Maps], NDArray[np.int64]]:
    """Attention and evidence maps (N, S, S) of the rows, and the predicted grades."""
    batches = list(iterate_attention(network, data.loader(rows), precision=precision, evidence=True))
    stack = {
        "attention": np.concatenate([batch.attention.numpy() for batch in batches]),
        "evidence": np.concatenate([batch.evidence.numpy() for batch in batches if batch.evidence is not None]),
    }
    return stack, np.concatenate([batch.predicted.numpy() for batch in batches])


def on_phantom(loaded: LoadedRun, data: KneeData, options: argparse.Namespace) -> str:
    """The table where the lesion is known."""
    truth = pd.read_csv(options.truth / "truth.csv")
    is_mr = "lesion_row" in truth
    found, predicted = maps_of(loaded.networks["teacher"], data, data.rows("test"), loaded.precision)
    least = 1 if is_mr else 2
    grades = data.grades[data.rows("test")]
    kept = np.flatnonzero((predicted == grades) & (grades >= least))
    kept = kept[np.linspace(0, len(kept) - 1, min(options.images, len(kept))).astype(int)]
    rows = data.rows("test")[kept]
    size = data.cache.images.shape[-1]
    masks = np.asarray(data.cache.masks[rows]) > 0
    lesions = mr_lesions(truth.iloc[rows], size) if is_mr else worse_halves(truth.iloc[rows], masks)
    torch.manual_seed(0)
    untrained = build_grader(loaded.config, loaded.grade_set, fresh=False).eval()
    others, _ = maps_of(untrained, data, rows, loaded.precision)
    mean = lesions.mean(0)
    maps: dict[str, Maps] = {
        "attention": found["attention"][kept],
        "evidence map": found["evidence"][kept],
        "attention, random weights": others["attention"],
        "evidence map, random weights": others["evidence"],
        "mean place of the other lesions": mean * len(lesions) - lesions,
    }
    lines = [f"| {name} | {hits(one, lesions):.3f} | {energy(one, lesions):.3f} |" for name, one in maps.items()]
    inside = (lesions & masks).sum((1, 2)) / np.maximum(masks.sum((1, 2)), 1)
    lines += [f"| a point of the mask | {inside.mean():.3f} | {inside.mean():.3f} |"]
    lines += [f"| a point of the image | {lesions.mean():.3f} | {lesions.mean():.3f} |"]
    head = f"{len(rows)} correctly graded test images with a lesion, of {(grades >= least).sum()} with one.\n\n"
    return (
        head
        + "| Map | Hottest point in the lesion | Share of the map inside |\n|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def mr_lesions(truth: pd.DataFrame, size: int) -> NDArray[np.bool_]:
    """A disc of the defect's width around its middle, in each slice: (N, S, S)."""
    rows, columns = np.indices((size, size))
    radius = truth["lesion_width_mm"].to_numpy() / 2 * size / EXTENT_MM
    apart = (rows[None] - truth["lesion_row"].to_numpy()[:, None, None]) ** 2
    apart = apart + (columns[None] - truth["lesion_column"].to_numpy()[:, None, None]) ** 2
    return np.asarray(apart <= radius[:, None, None] ** 2)


def worse_halves(truth: pd.DataFrame, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The joint in the worse compartment, and the margin of the other where it has an osteophyte: (N, S, S).

    The images must have the medial side on the right (``data.mirror_side: L``).
    """
    found = np.zeros_like(masks)
    for number, (mask, one) in enumerate(zip(masks, truth.to_dict("records"), strict=True)):
        columns = np.flatnonzero(mask.any(0))
        left, right = columns.min(), columns.max() + 1
        middle, margin = (left + right) // 2, (right - left) // 6
        halves = {"medial": (middle, right), "lateral": (left, middle)}
        margins = {"medial": (right - margin, right), "lateral": (left, left + margin)}
        worse, other = ("lateral", "medial") if one["is_lateral"] else ("medial", "lateral")
        spur = max(one[f"osteophyte_{bone}_{other}_mm"] for bone in ("femur", "tibia"))
        spans = [halves[worse]] + ([margins[other]] if spur >= LEAST_SPUR_MM else [])
        for start, stop in spans:
            found[number, :, start:stop] = mask[:, start:stop]
    return found


def hits(maps: Maps, lesions: NDArray[np.bool_]) -> float:
    """Share of images whose hottest point lies in the lesion; an empty map misses."""
    flat = maps.reshape(len(maps), -1)
    place = flat.argmax(1)
    return float((lesions.reshape(len(lesions), -1)[np.arange(len(flat)), place] & (flat.max(1) > 0)).mean())


def energy(maps: Maps, lesions: NDArray[np.bool_]) -> float:
    """Mean share of a map's sum inside the lesion."""
    return float(((maps * lesions).sum((1, 2)) / np.maximum(maps.sum((1, 2)), 1e-12)).mean())


def on_radiographs(loaded: LoadedRun, data: KneeData, count: int) -> str:
    """The table where no lesion is known: mean probability of the predicted grade while pixels are removed or added."""
    rows = data.rows("test")
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    network = loaded.networks["teacher"]
    found, predicted = maps_of(network, data, rows, loaded.precision)
    images = torch.from_numpy(np.asarray(data.cache.images[rows]))[:, None].float() / 255
    size, rng = images.shape[-1], np.random.default_rng(0)
    blobs = gaussian_blur(torch.from_numpy(rng.random(tuple(images.shape), np.float32)), 2 * BLUR * size)[:, 0].numpy()
    away = ((np.indices((size, size)) - (size - 1) / 2) ** 2).sum(0)
    maps = {
        "attention": found["attention"],
        "evidence map": found["evidence"],
        "distance from the center": np.repeat(np.exp(-away / size**2)[None], len(rows), 0),
        "random blobs": blobs,
    }
    lines = []
    for name, one in maps.items():
        deletion, insertion = curves(network, images, torch.from_numpy(predicted), one)
        lines.append(f"| {name} | {deletion:.3f} | {insertion:.3f} | {insertion - deletion:+.3f} |")
    head = (
        f"{len(rows)} test images. Up to {MOST_REMOVED:.0%} of the pixels, in the order of the map, are replaced by their "
        "neighbourhood's mean (deletion, lower is better), or all others are (insertion, higher is better).\n\n"
    )
    return head + "| Map | Deletion | Insertion | Difference |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"


@torch.no_grad()
def curves(network: Callable[[Tensor], Any], images: Tensor, grades: Tensor, maps: Maps) -> tuple[float, float]:
    """Mean probability of ``grades`` along the deletion and the insertion curve; images (N, 1, S, S), maps (N, S, S)."""
    count, size = len(images), images.shape[-1]
    deviation = size / 12
    blurred = gaussian_blur(images, deviation) / gaussian_blur(torch.ones_like(images), deviation)
    order = np.argsort(-maps.reshape(count, -1), axis=1)
    sums: Mapping[str, list[float]] = {"deletion": [], "insertion": []}
    for share in MOST_REMOVED * np.linspace(0, 1, STEPS + 1) ** 2:
        first = np.zeros(order.shape, np.float32)
        np.put_along_axis(first, order[:, : int(share * size * size)], 1, axis=1)
        chosen = torch.from_numpy(first).reshape(count, 1, size, size)
        for name, kept in (("deletion", 1 - chosen), ("insertion", chosen)):
            mixed = images * kept + blurred * (1 - kept)
            logits = torch.cat([network(part).logits for part in torch.split(mixed, 64)])
            sums[name].append(float(logits.float().softmax(1)[torch.arange(count), grades].mean()))
    return float(np.mean(sums["deletion"])), float(np.mean(sums["insertion"]))


if __name__ == "__main__":
    main(sys.argv[1:])
