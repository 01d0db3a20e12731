"""Weight-randomisation check: does a map depend on what the network learned?

Cascading randomisation (Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018): weights are randomised from the
output layer down. A map that stays similar when the weights are random shows the image, not what the network learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from knee.attention import attention_map
from knee.task import Grader, Grading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP_SIZE = 64


def weight_randomisation(
    network: nn.Module, images: Tensor, *, steps: int = 8, seed: int = 0, batch: int = 32, keep: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Similarity of the maps to the original ones while more and more weights are randomised, from the output layer down.

    network: a ``Grader``; it is copied, not changed. images (N, 1, S, S) in [0, 1], on its device. Each step shuffles the
    values within the next parameters (which keeps their distribution), last registered first, about the same number of
    tensors in each step. The maps are those of the grade that the original network predicts. Parameters whose names begin
    with one of ``keep`` are not shuffled and not counted.

    Returns one row for each step, the original network first: ``step``, ``share`` (of weights that are random),
    ``from_layer`` (the lowest shuffled layer), ``correlation`` (Spearman's, mean over images; an empty map counts as 0),
    ``correlation_low`` and ``correlation_high`` (quartiles), ``ssim`` (mean) and ``empty`` (share of empty maps). Raises
    ValueError for fewer than one step or no image.
    """
    if steps < 1 or not len(images):
        raise ValueError(f"{steps} steps on {len(images)} images; both must be at least 1")
    shuffled = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(seed)
    classes = _in_batches(shuffled, images, batch, lambda grading, _: grading.logits.argmax(1))
    intact = _maps(shuffled, images, classes, batch)
    named = [
        (name, parameter)
        for name, parameter in shuffled.named_parameters()
        if parameter.numel() > 1 and not name.startswith(keep)
    ]
    total, random = sum(parameter.numel() for _, parameter in named), 0
    rows = [{"step": 0, "share": 0.0, "from_layer": "none", **_likeness(intact, intact)}]
    for number, places in enumerate(np.array_split(np.arange(len(named))[::-1], min(steps, len(named))), 1):
        for place in places:
            parameter = named[place][1]
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
            random += parameter.numel()
        layer = named[places[-1]][0].rpartition(".")[0] or named[places[-1]][0]
        likeness = _likeness(intact, _maps(shuffled, images, classes, batch))
        rows.append({"step": number, "share": random / total, "from_layer": layer, **likeness})
    return pd.DataFrame(rows)


def sanity_figure(table: pd.DataFrame) -> Figure:
    """The table of ``weight_randomisation`` as a figure: similarity of the maps against the shuffled layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    x = table["step"]
    axes.fill_between(x, table["correlation_low"], table["correlation_high"], color="#1f77c9", alpha=0.18, lw=0)
    axes.plot(x, table["correlation"], "o-", color="#1f77c9", label="rank correlation (mean, quartiles)")
    axes.plot(x, table["ssim"], "s--", color="#b97506", label="structural similarity (mean)")
    axes.plot(x, table["empty"], ":", color="0.45", label="empty maps (share; correlation counts as 0)")
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set_xticks(x, [_short(name) for name in table["from_layer"]], rotation=35, ha="right", fontsize=8)
    axes.set(
        ylim=(-0.6, 1.05), xlabel="weights shuffled from the top down to …", ylabel="similarity to the original map"
    )
    axes.set_title("Weight randomisation: maps that depend on the weights fall to about 0", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman's correlation of each pair of maps, ties by their mean rank: (N, H, W) twice → (N,).

    0 where a map is constant.
    """
    ranks = [
        pd.DataFrame(maps.reshape(len(maps), -1).T).rank().to_numpy().T - (maps[0].size + 1) / 2
        for maps in (one, other)
    ]
    product = (ranks[0] * ranks[1]).sum(1)
    scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return np.asarray(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0), np.float64)


def structural_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Mean SSIM of each pair of maps in [0, 1], Gaussian window of σ = 1.5 (Wang et al. 2004): (N, H, W) twice → (N,)."""
    offsets = torch.arange(-5, 6, device=one.device, dtype=torch.float32)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = torch.outer(window, window)[None, None] / window.sum() ** 2

    def blur(maps: Tensor) -> Tensor:
        return F.conv2d(maps[:, None].float(), kernel)[:, 0]

    a, b = blur(one), blur(other)
    spread_a, spread_b = blur(one * one) - a * a, blur(other * other) - b * b
    together = blur(one * other) - a * b
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * a * b + c1) * (2 * together + c2) / ((a * a + b * b + c1) * (spread_a + spread_b + c2))
    return ratio.mean((1, 2))


def _likeness(intact: Tensor, changed: Tensor) -> dict[str, float]:
    correlation = rank_correlation(intact.cpu().numpy(), changed.cpu().numpy())
    low, high = np.quantile(correlation, [0.25, 0.75])
    return {
        "correlation": float(correlation.mean()),
        "correlation_low": float(low),
        "correlation_high": float(high),
        "ssim": float(structural_similarity(intact, changed).mean()),
        "empty": float((changed.amax((1, 2)) == 0).float().mean()),
    }


def _maps(network: nn.Module, images: Tensor, classes: Tensor, batch: int) -> Tensor:
    side = min(_MAP_SIZE, images.shape[-1])

    def attend(grading: Grading, place: slice) -> Tensor:
        # Random weights may give values that are not finite; such a map counts as empty.
        return attention_map(grading.class_maps.nan_to_num(0, 0, 0), classes[place], (side, side))

    return _in_batches(network, images, batch, attend)


@torch.no_grad()
def _in_batches(network: nn.Module, images: Tensor, batch: int, take: Callable[[Grading, slice], Tensor]) -> Tensor:
    grader = cast(Grader, network)
    places = [slice(start, start + batch) for start in range(0, len(images), batch)]
    return torch.cat([take(grader(images[place]), place) for place in places])


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"
