"""The few-label result on real radiographs in one table and one figure: both starts, labels only, unlabeled images, twins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.results.radiographs import MEDIAN
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
_DIFFERENCES = ("minus_labels_only", "minus_twin")
STARTS = {"random": "random weights", "imagenet": "ImageNet weights"}


def write_headline(results: Mapping[str, Results], folder: Path) -> None:
    """``headline.csv``, ``headline.md`` and ``headline.png``; ``results`` by start (random, imagenet)."""
    table = headline({start: one for start, one in results.items() if one.runs})
    text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(folder / "headline.csv", text, force=True)
    lines = "\n".join(["# The few-label result on the published radiographs", "", *headline_page(table), ""])
    write_text(folder / "headline.md", lines, force=True)
    save_figure(kappa_by_fraction(table), folder / "headline.png")


def headline(results: Mapping[str, Results]) -> pd.DataFrame:
    """One line for each method at each labeled fraction; differences are in kappa, paired, over the seeds of both.

    A semi row is compared with the labels-only row of the highest kappa at its fraction and start, and with its twin.
    """
    lines = [_line(start, one, cell) for start, one in results.items() for cell in one.study.cells if one.seeds(cell)]
    return pd.DataFrame(lines, columns=list(_COLUMNS))


def headline_page(table: pd.DataFrame) -> list[str]:
    """The table for people, with three decimals."""
    head = ["Start", "Labels", "Row", "Kind", "Draws", "Kappa", "Balanced accuracy", "Recall of grade 1"]
    head += ["Kappa minus labels only", "Kappa minus twin"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in table.to_dict("records"):
        cells = [
            STARTS[row["start"]],
            percent(row["fraction"]),
            row["row"],
            row["kind"].replace("_", " "),
            str(row["seeds"]),
        ]
        cells += [_with_interval(row["kappa"], row["low"], row["high"])]
        cells += [f"{row['balanced_accuracy']:.3f}", f"{row['recall_1']:.3f}"]
        cells += [_with_interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high"))) for name in _DIFFERENCES]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "Test split, flip TTA, median grade, mean over the draws of labeled patients, 95 % intervals by bootstrap over "
        "patients; differences are paired. A twin has the same extra terms, on the labeled images only. Made from the same "
        "runs as the other tables."
    )
    return [*lines, "", note]


def _with_interval(value: float, low: float, high: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _line(start: str, results: Results, cell: Cell) -> dict[str, Any]:
    row = results.study.row(cell.row)
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
            found = results.compare((cell, MEDIAN), (other, MEDIAN), "kappa")
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
    found = results.estimate(cell, MEDIAN, metric)
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
