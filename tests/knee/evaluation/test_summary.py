"""Printed tables: columns line up, undefined values are dashes, metrics without any value are left out."""

from __future__ import annotations

from knee.evaluation.summary import cell, grade_table, metric_table


def entry(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def test_a_value_without_an_interval_and_none_at_all() -> None:
    assert cell(entry(0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"
    assert cell(entry(0.12345, 0.1)) == "0.123"
    assert cell(entry(None, 0.1, 0.2)) == cell(None) == "–"


def test_columns_line_up_and_metrics_without_a_value_are_left_out() -> None:
    columns = {
        "teacher": {"kappa": entry(0.8), "tiou": entry(None), "mae": entry(0.25)},
        "a run with a name of more than 26 letters": {"kappa": entry(0.7, 0.6, 0.8)},
    }
    head, *lines = metric_table(columns)
    assert [line.split()[0] for line in lines] == ["kappa", "mae"]
    assert {len(line) for line in lines} == {len(head)}
    assert lines[0].split()[1:] == ["0.800", "0.700", "[0.600,", "0.800]"]
    assert lines[1].split()[1:] == ["0.250", "–"]
    assert metric_table(columns, names=("mae",))[1:] == lines[1:]


def test_grades_have_their_counts_and_the_last_row_their_sum() -> None:
    metrics = {f"{name}_{grade}": entry(grade / 10) for name in ("precision", "recall") for grade in (0, 1)}
    metrics |= {"macro_f1": entry(0.5), "recall": entry(0.05)}
    report = {"metrics": metrics, "grades": ["none", "severe"], "confusion": [[3, 1], [0, 2]]}
    head, none, severe, means = grade_table(report)
    assert head.split() == ["grade", "precision", "recall", "f1", "images"]
    assert none.split() == ["0", "none", "0.000", "0.000", "–", "4"]
    assert severe.split() == ["1", "severe", "0.100", "0.100", "–", "2"]
    assert means.split() == ["mean", "of", "grades", "–", "0.050", "0.500", "6"]
    assert len({len(line) for line in (head, none, severe, means)}) == 1
