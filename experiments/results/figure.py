"""F1 against the share of labels, all methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from experiments.results.statistics import Results
from experiments.results.study import Cell, Row, percent
from knee.evaluation.figures import COLOURS, save_figure

_MARKERS = "osD^vhp"


def f1_by_fraction(results: Results) -> Figure:
    """A line a method, as far as its runs go; bars are 95 % intervals, small dots single seeds."""
    study = results.study
    figure = Figure(figsize=(8.2, 4.6), dpi=150, layout="constrained", facecolor="white")
    axis = figure.subplots()
    cells = list(dict.fromkeys((*study.cells, *study.more_cells)))
    fractions = sorted({cell.fraction for cell in cells if results.seeds(cell)})
    shown = [row for row in study.rows if any(results.seeds(cell) for cell in cells if cell.row == row.name)]
    for number, row in enumerate(shown):
        # Side by side, so that the bars do not hide each other.
        aside = (number - (len(shown) - 1) / 2) * 0.09
        _draw_row(axis, results, row, fractions, aside, number)
    axis.set_xticks(range(len(fractions)), labels=[percent(fraction) for fraction in fractions], fontsize=11)
    axis.set_xlim(-0.5, len(fractions) - 0.5)
    axis.set_xlabel("Training patients with labels", fontsize=11.5)
    axis.set_ylabel("Macro F1, test patients", fontsize=11.5)
    axis.grid(axis="y", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    bars, labels = axis.get_legend_handles_labels()
    markers = [bar[0] if isinstance(bar, ErrorbarContainer) else bar for bar in bars]
    axis.legend(markers, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=10)
    return figure


def _draw_row(axis: Axes, results: Results, row: Row, fractions: list[float], aside: float, number: int) -> None:
    found = {
        place + aside: estimate
        for place, fraction in enumerate(fractions)
        if (estimate := results.estimate(Cell(row.name, fraction), row.network, "macro_f1")) is not None
    }
    colour, places = COLOURS[number % len(COLOURS)], list(found)
    values = np.array([one.value for one in found.values()])
    low, high = (np.array([getattr(one, end) for one in found.values()]) for end in ("low", "high"))
    axis.plot(places, values, color=colour, linewidth=1.2, alpha=0.5, zorder=2)
    axis.errorbar(
        places,
        values,
        # With few patients a metric may lie outside the percentiles of its draws.
        yerr=np.clip([values - low, high - values], 0, None),
        color=colour,
        label=row.title,
        fmt=_MARKERS[number % len(_MARKERS)],
        markersize=8,
        markeredgecolor="white",
        elinewidth=1.6,
        zorder=3,
    )
    for where, one in found.items():
        seeds = list(one.by_seed.values())
        axis.scatter([where] * len(seeds), seeds, s=8, color="black", alpha=0.55, linewidths=0, zorder=4)


def write_figure(results: Results, folder: Path, name: str) -> None:
    """``NAME.png``, where there is anything to show."""
    if results.runs:
        save_figure(f1_by_fraction(results), folder / f"{name}.png")
