"""Figures of an evaluation: confusion matrix, reliability, ROC. Readable at 700 px and with any color vision.

Each returns a matplotlib ``Figure`` made without pyplot: no global state, no window, safe in any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, roc_curve

from knee.metrics import checked, expected_calibration_error, reliability

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colors, which people with color vision deficiency can distinguish."""
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)), "-")
_DPI = 100
mpl.rcParams["text.parse_math"] = False  # a dollar sign in a name is not math


def confusion_figure(confusions: Mapping[str, ArrayLike], names: Sequence[str]) -> Figure:
    """Confusion matrices side by side, one for each run or network: counts, colored by their share of the row (recall).

    Each (K, K) of counts with the reader's grades in rows, under its title; ``names`` (K) of the grades. A row without
    cases stays empty. ValueError for other shapes.
    """
    matrices = {title: np.asarray(matrix) for title, matrix in confusions.items()}
    for title, matrix in matrices.items():
        if matrix.shape != (len(names), len(names)):
            raise ValueError(f"confusion matrix {title!r} is {matrix.shape}; {len(names)} grades need a square of that")
    figure, axes = _figure(1, len(matrices), width=1.2 + 5.4 * len(matrices), height=5.4)
    for number, (axis, (title, matrix)) in enumerate(zip(axes, matrices.items(), strict=True)):
        image = _draw_confusion(axis, matrix, names)
        right = np.trace(matrix) / max(matrix.sum(), 1)
        axis.set_title(f"{title}: {right:.1%} of {matrix.sum():,} right", fontsize=12)
        axis.set_ylabel("Reader's grade" if number == 0 else "")
    bar = figure.colorbar(image, ax=list(axes), fraction=0.05, pad=0.02, format=PercentFormatter(1.0))
    bar.set_label("Share of the reader's grade")
    return figure


def reliability_figure(probabilities: Mapping[str, ArrayLike], grades: ArrayLike, *, bins: int = 15) -> Figure:
    """Reliability diagram: accuracy against confidence of networks on the same cases, above a histogram of the confidence.

    Probabilities (N, K) under each network's name, grades (N,). On the diagonal a network is calibrated, below it
    overconfident. Larger markers mean more cases in the bin; bars are Wilson's 95 % intervals.
    """
    figure, (above, below) = _figure(2, 1, width=6.6, height=6.6, height_ratios=(3, 1), sharex=True)
    above.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":", label="calibrated")
    edges = np.linspace(0, 1, bins + 1)
    for number, (name, values) in enumerate(probabilities.items()):
        found = reliability(values, grades, bins=bins)
        error = expected_calibration_error(values, grades, bins=bins)
        color, dashes, known = COLORS[number], _DASHES[number], found.cases > 0
        x, y, cases = found.confidence[known], found.accuracy[known], found.cases[known]
        above.errorbar(x, y, yerr=_wilson(y, cases), fmt="none", ecolor=color, elinewidth=1.2, alpha=0.6)
        above.plot(x, y, color=color, linestyle=dashes, linewidth=1.2, label=f"{name} (ECE {error:.3f})")
        above.scatter(x, y, s=16 + 200 * cases / cases.max(), color=color, alpha=0.7, linewidths=0)
        below.stairs(found.cases, edges, color=color, linestyle=dashes, linewidth=1.6)
        if len(probabilities) == 1:
            below.stairs(found.cases, edges, fill=True, color=color, alpha=0.25)
    above.text(0.97, 0.04, "overconfident", ha="right", fontsize=11, color="0.35")
    above.text(0.03, 0.62, "underconfident", fontsize=11, color="0.35")
    above.set(ylabel="Accuracy in the bin", ylim=(-0.03, 1.03), xlim=(0, 1))
    above.legend(loc="upper left", frameon=False)
    below.set(ylabel="Cases", xlabel="Confidence: probability of the likeliest grade")
    return figure


def roc_figure(probabilities: ArrayLike, grades: ArrayLike, names: Sequence[str]) -> Figure:
    """ROC curves of each grade against all others, with the areas under the curves in the legend.

    Probabilities (N, K), grades (N,), ``names`` (K). A grade that no case has, or every case, has no curve and is listed
    as undefined.
    """
    values, known = checked(probabilities, grades)
    if values.shape[1] != len(names):
        raise ValueError(f"probabilities of {values.shape[1]} grades but {len(names)} names")
    figure, (axis,) = _figure(1, 1, width=6.6, height=6.2)
    axis.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":")
    for grade, name in enumerate(names):
        positive = known == grade
        style = {"color": COLORS[grade % len(COLORS)], "linestyle": _DASHES[grade % len(_DASHES)], "linewidth": 2}
        if positive.all() or not positive.any():
            axis.plot([], [], label=f"{grade} {name}: undefined, {positive.sum()} of {len(known)} cases", **style)
            continue
        false_share, true_share, _ = roc_curve(positive, values[:, grade])
        area = auc(false_share, true_share)
        axis.plot(false_share, true_share, label=f"{grade} {name}: AUC {area:.3f} ({positive.sum():,} cases)", **style)
    axis.set(xlabel="False positive share (1 − specificity)", ylabel="True positive share (sensitivity)")
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.legend(loc="lower right", title="One grade against the others", frameon=True, framealpha=0.9, fontsize=10)
    return figure


def figure_array(figure: Figure) -> NDArray[np.uint8]:
    """The figure as pixels: (H, W, 3) uint8 RGB, as TensorBoard's ``add_image(…, dataformats="HWC")`` takes them."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure to a file whose suffix names the format (.png, .svg, .pdf), making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def _figure(rows: int, columns: int, *, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    ratios = {"height_ratios": options.pop("height_ratios")} if "height_ratios" in options else {}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios, **options).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=10.5)
        axis.xaxis.label.set_size(11.5)
        axis.yaxis.label.set_size(11.5)
    return figure, axes


def _wilson(share: NDArray[np.float64], cases: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far Wilson's 95 % interval of a share reaches below and above it: (2, n), ≥ 0."""
    square = 1.96**2
    middle = (share + square / (2 * cases)) / (1 + square / cases)
    half = np.sqrt(square * (share * (1 - share) / cases + square / (4 * cases**2))) / (1 + square / cases)
    return np.clip([share - middle + half, middle + half - share], 0, None)


def _draw_confusion(axis: Axes, matrix: NDArray[Any], names: Sequence[str]) -> Any:
    support = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(support, 1)
    image = axis.imshow(share, cmap=mpl.colormaps["Blues"], vmin=0, vmax=1)
    size = 13 if len(names) <= 3 else 11
    for (row, column), count in np.ndenumerate(matrix):
        text = f"{count:,}\n{share[row, column]:.0%}" if count else "0" if support[row, 0] else "–"
        color = "white" if share[row, column] > 0.55 else "black" if count else "0.5"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=size, linespacing=1.25)
    for grade in range(len(names)):
        axis.add_patch(Rectangle((grade - 0.5, grade - 0.5), 1, 1, fill=False, edgecolor="black", clip_on=False))
    labels = [f"{grade} {name}" for grade, name in enumerate(names)]
    axis.set_xticks(range(len(names)), labels=labels)
    axis.set_yticks(range(len(names)), labels=labels, rotation=90, va="center")
    axis.set_xlabel("Predicted grade")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return image
