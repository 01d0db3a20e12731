"""The few-label result on real radiographs in one table and one figure: both starts, labels only, unlabeled images, twins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.results.statistics import Estimate, Results
from experiments.results.study import Cell, percent
from knee.evaluation.figures import COLORS, save_figure
from knee.io.files import write_text

_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "recall_1")
_COLUMNS = (
    "start", "fraction", "row", "kind", "kappa", "low", "high", *_METRICS,
    "minus_labels_only", "minus_labels_only_low", "minus_labels_only_high",
    "minus_twin", "minus_twin_low", "minus_twin_high", "seeds",
)  # fmt: skip
STARTS = {"random": "random weights", "imagenet": "ImageNet weights"}


def write_headline(results: Mapping[str, Results], folder: Path) -> None:
    """``headline.csv`` and ``headline.png``; ``results`` by start (random, imagenet)."""
    table = headline({start: one for start, one in results.items() if one.runs})
    text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_text(folder / "headline.csv", text, force=True)
    save_figure(kappa_by_fraction(table), folder / "headline.png")


def headline(results: Mapping[str, Results]) -> pd.DataFrame:
    """One line for each method at each labeled fraction; differences are in kappa, paired, over the seeds of both.

    A semi row is compared with the labels-only row of the highest kappa at its fraction and start, and with its twin.
    """
    lines = [_line(start, one, cell) for start, one in results.items() for cell in one.study.cells if one.seeds(cell)]
    return pd.DataFrame(lines, columns=list(_COLUMNS))


def _line(start: str, results: Results, cell: Cell) -> dict[str, Any]:
    row, network = results.study.row(cell.row), results.network(cell)
    kappa = _known(results, cell, "kappa")
    line: dict[str, Any] = {
        "start": start,
        "fraction": cell.fraction,
        "row": cell.row,
        "kind": row.kind,
        "kappa": kappa.value,
        "low": kappa.low,
        "high": kappa.high,
        **{metric: _known(results, cell, metric).value for metric in _METRICS},
        "seeds": len(results.seeds(cell)),
    }
    others = {"minus_labels_only": best_of_labels(results, cell.fraction)}
    if row.twin:
        others["minus_twin"] = Cell(row.twin, cell.fraction)
    for name, other in others.items() if row.kind == "semi" else ():
        found = None
        if other is not None and results.seeds(other):
            found = results.compare((cell, network), (other, results.network(other)), "kappa")
        if found is not None:
            line |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return line


def best_of_labels(results: Results, fraction: float) -> Cell | None:
    """The labels-only cell of the highest mean kappa at a fraction; None if none was run."""
    cells = [
        cell
        for cell in results.study.cells
        if cell.fraction == fraction and results.study.row(cell.row).kind == "labels_only" and results.seeds(cell)
    ]
    return max(cells, key=lambda cell: _known(results, cell, "kappa").value, default=None)


def _known(results: Results, cell: Cell, metric: str) -> Estimate:
    found = results.estimate(cell, results.network(cell), metric)
    assert found is not None, (cell, metric)
    return found


def kappa_by_fraction(table: pd.DataFrame) -> Figure:
    """Kappa of the best labels-only and the best semi row of each start, by labeled fraction, with 95 % intervals."""
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained", facecolor="white")
    axis = figure.subplots()
    fractions = sorted(table["fraction"].unique())
    for number, (start, title) in enumerate(STARTS.items()):
        for kind, label, style in (("labels_only", "labels only", "o-"), ("semi", "best with unlabeled images", "s--")):
            chosen = table[(table["start"] == start) & (table["kind"] == kind)]
            if chosen.empty:
                continue
            best = chosen.sort_values("kappa").groupby("fraction").tail(1).sort_values("fraction")
            offset = (number - 0.5) * 0.16 + (0.04 if kind == "semi" else -0.04)
            axis.errorbar(
                [fractions.index(fraction) + offset for fraction in best["fraction"]],
                best["kappa"],
                yerr=np.stack([best["kappa"] - best["low"], best["high"] - best["kappa"]]).clip(0),
                label=f"{title}, {label}",
                color=COLORS[number],
                fmt=style,
                markersize=7,
                mfc=COLORS[number] if kind == "labels_only" else "white",
                mec=COLORS[number],
                linewidth=1.3,
            )
    axis.set_xticks(range(len(fractions)), labels=[percent(fraction) for fraction in fractions])
    axis.set_xlabel("Training patients with labels")
    axis.set_ylabel("Quadratic-weighted kappa, test patients")
    axis.grid(axis="y", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False)
    return figure
