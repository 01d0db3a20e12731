"""Tables for people (Markdown) and for programs (CSV), written from stored runs and by nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.results.jobs import is_of_now
from experiments.results.statistics import Estimate, Results
from experiments.results.study import Cell, Claim, Network, Study, Table, percent
from knee.grades import load_grade_set
from knee.io.files import write_text

TITLES = {
    "recall": "Recall", "macro_f1": "F1", "auc": "AUC", "tiou": "TIoU", "accuracy": "Accuracy", "kappa": "Kappa",
    "adjacent": "Adjacent", "ece": "ECE", "flip_changed": "Flip changed", "flip_divergence": "Flip JSD",
}  # fmt: skip
_NOTHING = "–"


def write_table(results: Results, table: Table, folder: Path) -> None:
    """``NAME.csv`` and ``NAME.md`` of a table."""
    lines = [line for cell in table.cells for line in _csv_lines(results, cell, table.metrics)]
    text = "\n".join([f"# {table.title}", "", *markdown(results, table), "", *footer(results, table.cells), ""])
    _write_csv(folder / f"{table.name}.csv", lines)
    write_text(folder / f"{table.name}.md", text, force=True)


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = pd.DataFrame(lines).to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(path, text, force=True)


def markdown(results: Results, table: Table) -> list[str]:
    """The lines of a table: each cell's networks, the one that stands for the method in bold, then what was published.

    A brief table has the one alone. What the full part alone would tell, and has not yet, takes no line.
    """
    lines = []
    for cell in table.cells:
        if not (results.is_shown(cell) or cell in results.study.paper):
            continue
        start = (results.study.row(cell.row).title, percent(cell.fraction))
        looks_only = bool(results.study.row(cell.row).trained_as)  # its other networks stand with the row it looks at
        for network in results.study.networks:
            estimates = [results.estimate(cell, network, metric) for metric in table.metrics]
            stands = network == results.network(cell)
            if stands or (any(estimates) and not looks_only and not table.brief):
                name = f"**{network}**" if stands and not table.brief else network
                lines.append((*start, name, *map(shown, estimates)))
        published = results.study.paper.get(cell, {})
        if published:
            values = (f"{published[metric]:.3f}" if metric in published else _NOTHING for metric in table.metrics)
            lines.append((*start, "*as published*", *values))
    return _pipe_table(("Method", "Labels", "Network", *(TITLES[metric] for metric in table.metrics)), lines)


def _pipe_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def shown(estimate: Estimate | None) -> str:
    """A number with its interval.

    >>> shown(Estimate(0.5, 0.4123, 0.6, {1: 0.5}))
    '0.500 [0.412, 0.600]'
    """
    if estimate is None:
        return _NOTHING
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _csv_lines(results: Results, cell: Cell, metrics: Sequence[str]) -> list[dict[str, Any]]:
    lines = []
    for network in results.study.networks:
        for metric in metrics:
            found = results.estimate(cell, network, metric)
            if found is not None:
                start = {"row": cell.row, "fraction": cell.fraction, "network": network}
                lines.append({**start, "stands": network == results.network(cell), "metric": metric, **_values(found)})
    return lines


def _values(found: Estimate) -> dict[str, float]:
    seeds = {f"seed_{seed}": value for seed, value in found.by_seed.items()}
    return {"mean": found.value, "low": found.low, "high": found.high, **seeds}


class _Judged(NamedTuple):
    """A claim with all that is said of it."""

    claim: Claim
    first: str
    second: str
    printed: float | None
    found: Estimate | None
    verdict: str


def write_claims(results: Results, claims: Sequence[Claim], folder: Path, name: str) -> None:
    """``NAME.csv`` and ``NAME.md``: each claim with its number, its interval, and whether it holds.

    ``NAME_brief.md`` is the same in fewer columns, without what the full part alone would tell and has not yet.
    """
    judged = [
        _Judged(
            claim,
            label(results, claim.first, _networks(results, claim)[0]),
            _second(results, claim),
            published(results.study, claim),
            *judge(results, claim),
        )
        for claim in claims
    ]
    _write_csv(folder / f"{name}.csv", [_claim_values(one) for one in judged])
    several = any(one.found and len(one.found.by_seed) > 1 for one in judged)
    known = [one for one in judged if all(map(results.is_shown, _cells(one.claim)))]
    columns = ["Claim", "First", "Second", "Number", "Published", "Each seed", "Verdict"]
    if not results.study.paper:
        columns.remove("Published")
    brief = [column for column in columns if column not in ("First", "Second") and (several or column != "Each seed")]
    foot = footer(results, [cell for claim in claims for cell in _cells(claim)])
    for ending, listed, shown_columns, below in (("", judged, columns, foot), ("_brief", known, brief, [])):
        rows = [_claim_cells(one) for one in listed]
        table = _pipe_table(shown_columns, [[row[column] for column in shown_columns] for row in rows])
        text = "\n".join([*_claims_head(results.study), *table, "", *below]).rstrip("\n")
        write_text(folder / f"{name}{ending}.md", f"{text}\n", force=True)


def _claim_values(one: _Judged) -> dict[str, Any]:
    """A line of the CSV."""
    claim = one.claim
    return {
        "claim": claim.text,
        "metric": claim.metric,
        "first": one.first,
        "second": one.second,
        "kind": claim.kind,
        "rule": claim.rule,
        "bound": claim.bound,
        "published": one.printed,
        **(_values(one.found) if one.found else {}),
        "verdict": one.verdict,
    }


def _claim_cells(one: _Judged) -> dict[str, str]:
    """A line of the Markdown, by column."""
    return {
        "Claim": one.claim.text,
        "First": one.first,
        "Second": one.second,
        "Number": shown(one.found),
        "Published": _NOTHING if one.printed is None else f"{one.printed:.3f}",
        "Each seed": ", ".join(f"{value:.3f}" for value in one.found.by_seed.values()) if one.found else _NOTHING,
        "Verdict": one.verdict,
    }


def _claims_head(study: Study) -> list[str]:
    """How to read the claims."""
    text = (
        "Differences are first minus second on the same test images, the same patients drawn for both; where second is a "
        "printed number, it is taken as exact. A claim holds where the interval lies above its bound (0 unless it names one), "
        "does not hold where it lies below, and is undecided in between, unless it speaks of the interval itself."
    )
    if study.paper:
        text += " “Published” is the paper's own number for the same; claims without one are this study's."
    return [f"# {study.title}: what holds", "", text, ""]


def published(study: Study, claim: Claim) -> float | None:
    """What the paper's own numbers give for a claim; None where it has none for one of the two."""
    both = [study.paper.get(cell, {}).get(claim.metric) for cell in _cells(claim)]
    first, second = both if len(both) == 2 else (None, None)
    if first is None or second is None:
        return None
    return first / second if claim.kind == "ratio" else first - second


def judge(results: Results, claim: Claim) -> tuple[Estimate | None, str]:
    """The number of a claim, and "holds", "undecided", "does not hold" or "not run"; for a rule "stated" no verdict."""
    first, second = _networks(results, claim)
    other = (claim.second, second) if isinstance(claim.second, Cell) else claim.second
    found = results.compare((claim.first, first), other, claim.metric, ratio=claim.kind == "ratio")
    if found is None:
        return None, "not run"
    above, below = found.low > claim.bound, found.high < claim.bound
    sure = f"interval {'excludes' if above or below else 'includes'} {claim.bound:g}"
    if claim.rule == "stated":
        return found, f"stated ({sure})"
    undecided = not below and claim.rule == "mean"
    return found, f"{'holds' if above else 'undecided' if undecided else 'does not hold'} ({sure})"


def _cells(claim: Claim) -> list[Cell]:
    return [cell for cell in (claim.first, claim.second) if isinstance(cell, Cell)]


def _networks(results: Results, claim: Claim) -> tuple[Network, Network]:
    if claim.networks:
        return claim.networks
    first = results.network(claim.first)
    return first, results.network(claim.second) if isinstance(claim.second, Cell) else first


def label(results: Results, cell: Cell, network: Network) -> str:
    """A cell in words."""
    return f"{results.study.row(cell.row).title}, {percent(cell.fraction)}, {network}"


def _second(results: Results, claim: Claim) -> str:
    if isinstance(claim.second, Cell):
        return label(results, claim.second, _networks(results, claim)[1])
    return f"{claim.second:g}"


def write_per_grade(results: Results, folder: Path, name: str) -> None:
    """``NAME.csv`` and ``NAME.md``: precision, recall and F1 of each grade, a column a method (Chavoshi et al., Table 1)."""
    grades = load_grade_set(results.study.grade_set).count
    text, lines = [f"# {results.study.title}: grade by grade", ""], []
    cells = []
    every = (*results.study.cells, *results.study.more_cells)
    for fraction in results.study.per_grade:
        columns = [cell for cell in every if cell.fraction == fraction and results.seeds(cell)]
        cells += columns
        lines += [
            line for cell in columns for line in _csv_lines(results, cell, [m for _, _, m in per_grade_metrics(grades)])
        ]
        titles = [f"{results.study.row(cell.row).title} ({results.network(cell)})" for cell in columns]
        values = [
            (title, grade, *(shown(results.estimate(cell, results.network(cell), metric)) for cell in columns))
            for title, grade, metric in per_grade_metrics(grades)
        ]
        text += [f"{percent(fraction)} of the labels", "", *_pipe_table(("Metric", "Grade", *titles), values), ""]
    _write_csv(folder / f"{name}.csv", lines)
    write_text(folder / f"{name}.md", "\n".join([*text, *footer(results, cells), ""]), force=True)


def per_grade_metrics(grades: int) -> list[tuple[str, str, str]]:
    """Title, grade and name of each line of the per-grade table.

    >>> per_grade_metrics(1)[0], per_grade_metrics(1)[-1]
    (('Precision', '0', 'precision_0'), ('QW Kappa', '', 'kappa'))
    """
    by_grade = [
        (title, str(grade), f"{metric}_{grade}")
        for title, metric in (("Precision", "precision"), ("Recall", "recall"), ("F1-score", "f1"))
        for grade in range(grades)
    ]
    return [*by_grade, ("Adj. Acc", "", "adjacent"), ("QW Kappa", "", "kappa")]


def footer(results: Results, cells: Sequence[Cell]) -> list[str]:
    """What stands below every table: the command, the runs behind it and their commits."""
    wanted = {(results.study.row(cell.row).training, cell.fraction) for cell in cells}
    found = {key: run for key, run in sorted(results.runs.items()) if key[:2] in wanted}
    runs = list(found.values())
    command = results.study.command_of(found)
    if not runs:
        return [f"No run yet. Made by `{command}`."]
    commits = Counter(run.about["commit"] + ("+" if run.about["changed_files"] else "") for run in runs)
    by_commit = ", ".join(f"{commit} ({count})" for commit, count in commits.items())
    sizes = ", ".join(dict.fromkeys(f"{len(run.grades)} of {len(set(run.patients.tolist()))} patients" for run in runs))
    steps = ", ".join(map(str, sorted({run.about["steps"] for run in runs})))
    several = len({run.about["seed"] for run in runs}) > 1
    each, averaged = (" of a seed", ", averaged over the seeds") if several else ("", "")
    return [
        f"{_seeds(results, cells)}; 95 % intervals by bootstrap over the test patients ({results.samples} draws){averaged}. "
        f"Test images{each}: {sizes}. {steps} optimiser steps a run; checkpoint: {_checkpoints(results, cells)}."
        + _of_before(results, cells),
        "",
        f"Made by `{command}` from {len(runs)} runs of commit {by_commit}"
        + ("; + marks changed files" if any("+" in commit for commit in commits) else "")
        + "; their configs are in `runs/`.",
    ]


def _seeds(results: Results, cells: Sequence[Cell]) -> str:
    """The seeds of the runs: by labeled fraction where these differ in them, by row where rows of one do."""
    ran = {cell: tuple(results.seeds(cell)) for cell in dict.fromkeys(cells) if results.seeds(cell)}
    named: dict[tuple[int, ...], list[str]] = {}
    for fraction in sorted({cell.fraction for cell in ran}):
        here = {cell: seeds for cell, seeds in ran.items() if cell.fraction == fraction}
        alike = len(set(here.values())) == 1
        for cell, seeds in here.items():
            name = percent(fraction) if alike else f"{percent(fraction)} ({results.study.row(cell.row).title})"
            if name not in named.setdefault(seeds, []):
                named[seeds].append(name)
    said = [
        (f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}", shares)
        for seeds, shares in named.items()
    ]
    words = "; ".join(f"{seeds} at {' and '.join(shares)}" for seeds, shares in said) if len(said) > 1 else said[0][0]
    return words[0].upper() + words[1:]


def _checkpoints(results: Results, cells: Sequence[Cell]) -> str:
    """Which checkpoint was graded; where it was chosen, after which steps it was found."""
    if results.study.checkpoint == "last":
        return "last"
    found = [
        f"{results.study.row(cell.row).title} {percent(cell.fraction)}, {', '.join(map(str, steps))}"
        for cell in dict.fromkeys(cells)
        if (steps := [run.about["checkpoint_step"] for run in results.of(cell)])
    ]
    return f"best by validation, after these steps: {'; '.join(found)}"


def _of_before(results: Results, cells: Sequence[Cell]) -> str:
    """A sentence that names the runs of another config than the study has now; empty where there is none."""
    found = [
        f"{results.study.row(cell.row).title} {percent(cell.fraction)}"
        for cell in dict.fromkeys(cells)
        if any(
            not is_of_now(results.study, cell, run.about["seed"], run.about["config"])
            for run in results.of(cell)
            if "config" in run.about
        )
    ]
    return f" Trained with other options than the study has now: {', '.join(found)}." if found else ""
