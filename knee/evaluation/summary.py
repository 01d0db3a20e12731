"""The tables that commands print: networks or runs side by side, and metrics by grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OF_GRADES = (
    "accuracy",
    "precision",
    "recall",
    "macro_f1",
    "auc",
    "kappa",
    "adjacent",
    "mae",
    "ece",
    "ece_uncalibrated",
)
SHOWN = (*_OF_GRADES, "tiou", "flip_changed", "flip_divergence")
_PER_GRADE = ("precision", "recall", "f1")
Entry = Mapping[str, float | None]


def metric_table(columns: Mapping[str, Mapping[str, Entry]], *, names: Sequence[str] = SHOWN) -> list[str]:
    """One line for each metric, one column for each network, run or difference; metrics without any value are left out.

    >>> for line in metric_table({"teacher": {"kappa": {"value": 0.8, "low": 0.7, "high": 0.9}}}):
    ...     print(line)
                                         teacher
    kappa                   0.800 [0.700, 0.900]
    """
    width = max(26, 2 + max(map(len, columns)))
    rows = {name: [cell(metrics.get(name)) for metrics in columns.values()] for name in names}
    known = {name: cells for name, cells in rows.items() if set(cells) != {"–"}}
    return [
        f"{name:18}" + "".join(f"{text:>{width}}" for text in cells) for name, cells in ({"": columns} | known).items()
    ]


def grade_table(report: Mapping[str, Any]) -> list[str]:
    """Precision, recall and F1 of every grade and their means, from a report of ``knee.evaluation.report.report``."""
    metrics, cases = report["metrics"], [sum(row) for row in report["confusion"]]
    titles = [f"{grade} {name}" for grade, name in enumerate(report["grades"])]
    rows: list[tuple[str, Sequence[str], object]] = [("grade", _PER_GRADE, "images")]
    rows += [
        (title, [_plain(metrics.get(f"{name}_{grade}")) for name in _PER_GRADE], cases[grade])
        for grade, title in enumerate(titles)
    ]
    rows.append(
        ("mean of grades", [_plain(metrics.get(name)) for name in ("precision", "recall", "macro_f1")], sum(cases))
    )
    width = max(16, *map(len, titles))
    return [
        f"{title:{width}}" + "".join(f"{text:>11}" for text in texts) + f"{count:>9}" for title, texts, count in rows
    ]


def cell(entry: Entry | None) -> str:
    """A value with its interval, as far as they are defined.

    >>> cell({"value": 0.5, "low": 0.25, "high": 0.75}), cell({"value": 0.5, "low": None, "high": None}), cell(None)
    ('0.500 [0.250, 0.750]', '0.500', '–')
    """
    value = _plain(entry)
    if entry is None or None in (entry["value"], entry["low"], entry["high"]):
        return value
    return f"{value} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _plain(entry: Entry | None) -> str:
    return "–" if entry is None or entry["value"] is None else f"{entry['value']:.3f}"
