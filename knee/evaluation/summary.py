"""The tables that commands print: networks or runs side by side, and metrics by grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knee.metrics import OPERATING_POINTS

_OF_GRADES = (
    "accuracy", "balanced_accuracy", "precision", "macro_f1", "auc", "auc_disease", "kappa", "adjacent", "mae", "ece",
    "ece_uncalibrated",
)  # fmt: skip
SHOWN = (*_OF_GRADES, "tiou", "flip_changed", "flip_divergence")
_PER_GRADE = ("precision", "recall", "f1")
_OF_POINTS = ("sensitivity", "specificity", "net_benefit")
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


def operating_table(columns: Mapping[str, Mapping[str, Entry]], names: Sequence[str], first: int) -> list[str]:
    """Sensitivity, specificity and net benefit for disease at each threshold, one column for each run or difference.

    ``names`` are those of the grades, ``first`` is the lowest that counts as disease.
    """
    chosen = [f"{name}_{threshold:g}" for name in _OF_POINTS for threshold in OPERATING_POINTS]
    title = f"disease (grade {first} {names[first]} or higher), by the probability from which a knee is called diseased"
    return [title, *metric_table(columns, names=chosen)[1:]]


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
