"""The tables that commands print: networks or runs side by side, and each grade by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = (
    "accuracy",
    "precision",
    "recall",
    "macro_f1",
    "auc",
    "kappa",
    "adjacent",
    "mae",
    "ece",
    "tiou",
    "flip_changed",
    "flip_divergence",
)
_PER_GRADE = ("precision", "recall", "f1")
Entry = Mapping[str, float | None]


def metric_table(columns: Mapping[str, Mapping[str, Entry]], *, names: Sequence[str] = SHOWN) -> list[str]:
    """A line a metric, a column a network, run or difference; metrics that no column knows are left out.

    >>> for line in metric_table({"teacher": {"kappa": {"value": 0.8, "low": 0.7, "high": 0.9}}}):
    ...     print(line)
                                         teacher
    kappa                   0.800 [0.700, 0.900]
    """
    width = max(26, 2 + max(len(title) for title in columns))
    lines = [" " * 18 + "".join(f"{title:>{width}}" for title in columns)]
    for name in names:
        cells = [cell(metrics.get(name)) for metrics in columns.values()]
        if any(shown != "–" for shown in cells):
            lines.append(f"{name:18}" + "".join(f"{shown:>{width}}" for shown in cells))
    return lines


def grade_table(report: Mapping[str, Any]) -> list[str]:
    """Precision, recall and F1 of every grade and their means, from a report of ``knee.evaluation.report.report``."""
    metrics, cases = report["metrics"], [sum(row) for row in report["confusion"]]
    titles = [f"{grade} {name}" for grade, name in enumerate(report["grades"])]
    width = max(16, *(len(title) for title in titles))
    lines = [f"{'grade':{width}}" + "".join(f"{name:>11}" for name in _PER_GRADE) + f"{'images':>9}"]
    for grade, title in enumerate(titles):
        values = (_plain(metrics.get(f"{name}_{grade}")) for name in _PER_GRADE)
        lines.append(f"{title:{width}}" + "".join(f"{value:>11}" for value in values) + f"{cases[grade]:>9}")
    macro = (_plain(metrics.get(name)) for name in ("precision", "recall", "macro_f1"))
    lines.append(f"{'mean of grades':{width}}" + "".join(f"{value:>11}" for value in macro) + f"{sum(cases):>9}")
    return lines


def cell(entry: Entry | None) -> str:
    """A value with its interval, as far as they are known.

    >>> cell({"value": 0.5, "low": 0.25, "high": 0.75}), cell({"value": 0.5, "low": None, "high": None}), cell(None)
    ('0.500 [0.250, 0.750]', '0.500', '–')
    """
    if entry is None or entry["value"] is None:
        return "–"
    if entry["low"] is None or entry["high"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _plain(entry: Entry | None) -> str:
    return "–" if entry is None or entry["value"] is None else f"{entry['value']:.3f}"
