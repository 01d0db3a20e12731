"""Tables for people (Markdown) and for programs (CSV), and a figure, written only from stored runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.results.statistics import Estimate, Results
from experiments.results.study import Cell, Claim, Network, Study, percent
from knee.evaluation.figures import COLORS, save_figure
from knee.grades import load_grade_set
from knee.io.files import write_text

TITLES = {
    "recall": "Recall", "macro_f1": "F1", "auc": "AUC", "tiou": "TIoU", "accuracy": "Accuracy", "kappa": "Kappa",
    "adjacent": "Adjacent", "balanced_accuracy": "Balanced accuracy", "mae": "MAE", "auc_disease": "AUC of KL ≥ 2",
    "recall_1": "Recall of grade 1", "ece": "ECE", "flip_changed": "Flip changed", "flip_divergence": "Flip JSD",
}  # fmt: skip
_NOTHING = "–"
_MARKERS = "osD^vhp"
_HOW_TO_READ = (
    "Differences are first minus second on the same test images, with the same bootstrap draws of patients for both; a "
    "published number is taken as exact. A claim holds where the 95 % interval is above its bound (0 unless given), does "
    "not hold where it is below, and is undecided where the interval contains the bound. A claim about the interval "
    "itself holds or does not. Without a claim the difference is only reported."
)


def write_tables(results: Results, folder: Path) -> None:
    """Tables and figure of a study.

    ``STUDY.md`` has every method by labeled fraction, ``STUDY_claims.md`` the claims, ``STUDY_per_grade.md`` the metrics by
    grade. ``STUDY.csv`` is in long form, one line per cell, network and metric, those by grade included.
    """
    study = results.study
    claims = [claim_line(results, claim) for claim in study.claims]
    by_grade = [name for _, _, name in grade_metrics(study) if name not in study.metrics]
    numbers = [
        line
        for cell in study.cells
        for line in _csv_lines(results, cell, [*study.metrics, *(by_grade if cell.fraction in study.per_grade else ())])
    ]
    pages = {
        "": (study.title, main_table(results)),
        "_claims": (f"{study.title}: what holds", claims_table(study, claims)),
    }
    if study.per_grade:
        pages["_per_grade"] = f"{study.title}: by grade", per_grade_tables(results)
    folder.mkdir(parents=True, exist_ok=True)
    for ending, lines in {"": numbers, "_claims": claims}.items():
        text = pd.DataFrame(lines).to_csv(index=False, float_format="%.6f", lineterminator="\n")
        write_text(folder / f"{study.name}{ending}.csv", text, force=True)
    for ending, (title, page) in pages.items():
        text = "\n".join([f"# {title}", "", *page, "", *footer(results), ""])
        write_text(folder / f"{study.name}{ending}.md", text, force=True)
    name = "f1_by_fraction" if study.name == "phantom" else f"{study.name}_f1_by_fraction"
    save_figure(f1_by_fraction(results), folder / f"{name}.png")


def main_table(results: Results) -> list[str]:
    """A table for each labeled fraction: each method's networks, the reported one in bold, then the published numbers."""
    study = results.study
    head = ["Method", "Network", "Seeds", *(["Best step"] if study.checkpoint == "best" else [])]
    head += [TITLES[metric] for metric in study.metrics]
    text: list[str] = []
    for fraction in dict.fromkeys(cell.fraction for cell in study.cells):
        cells = [cell for cell in study.cells if cell.fraction == fraction]
        lines = [line for cell in cells for line in _cell_lines(results, cell)]
        if lines:
            text += [f"## {percent(fraction)} of the labels", "", *_pipe_table(head, lines), ""]
    return text[:-1]


def _cell_lines(results: Results, cell: Cell) -> list[list[str]]:
    study, row, seeds = results.study, results.study.row(cell.row), results.seeds(cell)
    steps = [_joined(results.run(cell, seed).about["checkpoint_step"] for seed in seeds)]
    origin = [_joined(seeds), *(steps if study.checkpoint == "best" else [])]
    lines = []
    # A row that only evaluates another row's runs shows only its own network.
    for network in (row.network,) if row.trained_as else study.networks:
        estimates = [results.estimate(cell, network, metric) for metric in study.metrics]
        if any(estimates):
            name = f"**{network}**" if network == row.network else network
            lines.append([row.title, name, *origin, *map(shown, estimates)])
    if published := study.published.get(cell):
        values = (f"{published[metric]:.3f}" if metric in published else _NOTHING for metric in study.metrics)
        lines.append([row.title, "*as published*", *[_NOTHING] * len(origin), *values])
    return lines


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _pipe_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def shown(estimate: Estimate | None) -> str:
    """A number with its interval.

    >>> shown(Estimate(0.5, 0.4123, 0.6, {1: 0.5}))
    '0.500 [0.412, 0.600]'
    """
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate else _NOTHING


def _csv_lines(results: Results, cell: Cell, metrics: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "row": cell.row,
            "fraction": cell.fraction,
            "network": network,
            "reported": network == results.network(cell),
            "metric": metric,
            **_values(found),
        }
        for network in results.study.networks
        for metric in metrics
        if (found := results.estimate(cell, network, metric)) is not None
    ]


def _values(found: Estimate) -> dict[str, float]:
    seeds = {f"seed_{seed}": value for seed, value in found.by_seed.items()}
    return {"mean": found.value, "low": found.low, "high": found.high, **seeds}


def claim_line(results: Results, claim: Claim) -> dict[str, Any]:
    """A claim with its number, its interval, and whether it holds: a line of the CSV."""
    found, verdict = judge(results, claim)
    first, second = _networks(results, claim)
    sides = {"first": _label(results, claim.first, first), "second": f"{claim.second} ({claim.source})"}
    if isinstance(claim.second, Cell):
        sides["second"] = _label(results, claim.second, second)
    start = {"metric": claim.metric, **sides, "kind": claim.kind, "rule": claim.rule, "bound": claim.bound}
    number = _values(found) if found else {}
    return {**start, "published": published(results.study, claim), **number, "verdict": verdict}


def _label(results: Results, cell: Cell, network: Network) -> str:
    return f"{results.study.row(cell.row).title}, {percent(cell.fraction)}, {network}"


def claims_table(study: Study, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the CSV for people."""
    table = []
    for line in lines:
        kind = "interval" if line["rule"] == "interval" else line["kind"]
        claim = _NOTHING if line["rule"] == "none" else f"{kind} above {line['bound']:g}"
        number = f"{line['mean']:.3f} [{line['low']:.3f}, {line['high']:.3f}]" if "mean" in line else _NOTHING
        printed = _NOTHING if line["published"] is None else f"{line['published']:.3f}"
        each = _joined(f"{value:.3f}" for name, value in line.items() if name.startswith("seed_"))
        numbers = [number, *([printed] if study.published else []), each or _NOTHING]
        table.append([TITLES[line["metric"]], line["first"], line["second"], claim, *numbers, line["verdict"]])
    head = ["Metric", "First", "Second", "Claim", "Number", *(["Published"] if study.published else [])]
    note = " “Published” is the paper's own number for the same difference." if study.published else ""
    return [_HOW_TO_READ + note, "", *_pipe_table([*head, "Each seed", "Verdict"], table)]


def published(study: Study, claim: Claim) -> float | None:
    """A claim's number by the paper's own values; None where the paper lacks one of the two."""
    both = [
        study.published.get(cell, {}).get(claim.metric)
        for cell in (claim.first, claim.second)
        if isinstance(cell, Cell)
    ]
    first, second = both if len(both) == 2 else (None, None)
    if first is None or second is None:
        return None
    return first / second if claim.kind == "ratio" else first - second


def judge(results: Results, claim: Claim) -> tuple[Estimate | None, str]:
    """The number of a claim, and "holds", "undecided", "does not hold" or "not run"; without a claim "reported"."""
    first, second = _networks(results, claim)
    other = (claim.second, second) if isinstance(claim.second, Cell) else claim.second
    found = results.compare((claim.first, first), other, claim.metric, ratio=claim.kind == "ratio")
    if found is None:
        return None, "not run"
    above, below = found.low > claim.bound, found.high < claim.bound
    interval = f"interval {'excludes' if above or below else 'includes'} {claim.bound:g}"
    if claim.rule == "none":
        return found, f"reported ({interval})"
    undecided = not below and claim.rule == "above"
    return found, f"{'holds' if above else 'undecided' if undecided else 'does not hold'} ({interval})"


def _networks(results: Results, claim: Claim) -> tuple[Network, Network]:
    if claim.networks:
        return claim.networks
    first = results.network(claim.first)
    return first, results.network(claim.second) if isinstance(claim.second, Cell) else first


def per_grade_tables(results: Results) -> list[str]:
    """Precision, recall and F1 of each grade, one column per method (Chavoshi et al., Table 1)."""
    study = results.study
    text: list[str] = []
    for fraction in study.per_grade:
        cells = [cell for cell in study.cells if cell.fraction == fraction and results.seeds(cell)]
        titles = [f"{study.row(cell.row).title} ({results.network(cell)})" for cell in cells]
        lines = [
            [title, grade, *(shown(results.estimate(cell, results.network(cell), metric)) for cell in cells)]
            for title, grade, metric in grade_metrics(study)
        ]
        text += [f"## {percent(fraction)} of the labels", "", *_pipe_table(["Metric", "Grade", *titles], lines), ""]
    return text[:-1]


def grade_metrics(study: Study) -> list[tuple[str, str, str]]:
    """Title, grade and name of each line of a table by grade."""
    by_grade = [
        (title, str(grade), f"{metric}_{grade}")
        for title, metric in (("Precision", "precision"), ("Recall", "recall"), ("F1-score", "f1"))
        for grade in range(load_grade_set(study.grade_set).count)
    ]
    return [*by_grade, ("Adj. Acc", "", "adjacent"), ("QW Kappa", "", "kappa")]


def footer(results: Results) -> list[str]:
    """The end of every table: test images, steps, checkpoint, the command, and the commits of the runs."""
    study, runs = results.study, list(results.runs.values())
    sizes = _joined(dict.fromkeys(f"{len(run.grades)} of {len(set(run.patients.tolist()))} patients" for run in runs))
    steps = _joined(sorted({run.about["steps"] for run in runs}))
    checkpoint = {"last": "last", "best": "best by validation"}[study.checkpoint]
    text = (
        f"Means over the seeds of each method with 95 % intervals by bootstrap over the test patients ({results.samples} "
        f"draws). Test images of a seed: {sizes}. Optimizer steps of a run: {steps}; checkpoint: {checkpoint}."
    )
    if any("TTA" in network for network in study.networks):
        text += " TTA: mean probabilities of the image and its horizontal flip."
    if results.stale:
        text += f" Trained with another config or version than the study has now: {_joined(sorted(results.stale))}."
    counts = Counter(run.commit for run in runs)  # "+" marks changed files
    commits = _joined(f"{commit} ({count})" for commit, count in sorted(counts.items()))
    return [
        text,
        "",
        f"Made by `{study.command}` from {len(runs)} runs of commit {commits}; their configs are in `runs/`.",
    ]


def f1_by_fraction(results: Results) -> Figure:
    """One line per method; bars are 95 % intervals, small dots single seeds."""
    figure = Figure(figsize=(8.2, 4.6), dpi=150, layout="constrained", facecolor="white")
    axis = figure.subplots()
    cells = [cell for cell in results.study.cells if results.seeds(cell)]
    fractions = list(dict.fromkeys(cell.fraction for cell in cells))
    rows = [row for row in results.study.rows if row.name in {cell.row for cell in cells}]
    for number, row in enumerate(rows):
        # Side by side, so that the bars do not hide each other.
        offset = (number - (len(rows) - 1) / 2) * 0.09
        here = {fractions.index(cell.fraction) + offset: cell for cell in cells if cell.row == row.name}
        found = [results.estimate(cell, row.network, "macro_f1") for cell in here.values()]
        _draw_row(axis, row.title, dict(zip(here, found, strict=True)), number)
    axis.set_xticks(range(len(fractions)), labels=[percent(fraction) for fraction in fractions], fontsize=11)
    axis.set_xlim(-0.5, len(fractions) - 0.5)
    axis.set_xlabel("Training patients with labels", fontsize=11.5)
    axis.set_ylabel("Macro F1, test patients", fontsize=11.5)
    axis.grid(axis="y", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=10)
    return figure


def _draw_row(axis: Axes, title: str, found: Mapping[float, Estimate | None], number: int) -> None:
    known = {place: one for place, one in found.items() if one}
    values, low, high = np.array([(one.value, one.low, one.high) for one in known.values()]).T
    # With few patients a metric may be outside the percentiles of its draws.
    axis.errorbar(
        list(known),
        values,
        yerr=np.clip([values - low, high - values], 0, None),
        label=title,
        color=COLORS[number % len(COLORS)],
        fmt=f"{_MARKERS[number % len(_MARKERS)]}-",
        linewidth=1.2,
        elinewidth=1.6,
        markersize=8,
        markeredgecolor="white",
    )
    for place, one in known.items():
        axis.scatter([place] * len(one.by_seed), list(one.by_seed.values()), s=8, color="black", linewidths=0, zorder=4)
