"""The headline table: kinds, the labels-only row to compare with, paired differences, and the figure."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.results.headline import best_of_labels, headline, write_headline
from experiments.results.pretrained import RADIOGRAPHS_PRETRAINED
from experiments.results.radiographs import RADIOGRAPHS
from experiments.results.statistics import Results
from experiments.results.study import Cell, Run


@pytest.fixture
def both(made_up) -> dict[str, Results]:
    def made(study, cells: dict[tuple[str, float], float], seeds=(0, 1)) -> Results:
        runs = {
            Run(row, fraction, seed): made_up(row, fraction, seed, right=right, grades=5, study=study.name)
            for (row, fraction), right in cells.items()
            for seed in seeds
        }
        return Results(study, runs, samples=100)

    return {
        "random": made(RADIOGRAPHS, {("supervised", 0.1): 0.5, ("mean_teacher", 0.1): 0.55, ("supervised", 1.0): 0.7}),
        "imagenet": made(
            RADIOGRAPHS_PRETRAINED,
            {("supervised", 0.1): 0.6, ("self_training", 0.1): 0.9, ("self_training_twin", 0.1): 0.6},
        ),
    }


def test_semi_rows_are_compared_with_labels_only_and_with_their_twin(both) -> None:
    table = headline(both).set_index(["start", "fraction", "row"])
    assert table["kind"].to_dict() == {
        ("random", 0.1, "supervised"): "labels_only",
        ("random", 0.1, "mean_teacher"): "semi",
        ("random", 1.0, "supervised"): "labels_only",
        ("imagenet", 0.1, "supervised"): "labels_only",
        ("imagenet", 0.1, "self_training"): "semi",
        ("imagenet", 0.1, "self_training_twin"): "twin",
    }
    semi = table.loc[("imagenet", 0.1, "self_training")]
    for name, row in (("minus_labels_only", "supervised"), ("minus_twin", "self_training_twin")):
        assert semi[name] == pytest.approx(semi["kappa"] - table.loc[("imagenet", 0.1, row), "kappa"])
        assert 0 < semi[f"{name}_low"] < semi[name] < semi[f"{name}_high"]
    assert pd.isna(table.loc[("random", 0.1, "mean_teacher"), "minus_twin"])
    others = table[table["kind"] != "semi"]
    assert others[["minus_labels_only", "minus_twin"]].isna().all(axis=None)
    assert (table["seeds"] == 2).all()


def test_the_best_labels_only_row_is_that_of_the_same_fraction(both) -> None:
    assert best_of_labels(both["random"], 0.1) == Cell("supervised", 0.1)
    assert best_of_labels(both["random"], 0.25) is None


def test_table_and_figure_are_written_with_the_columns_of_the_headline(both, tmp_path) -> None:
    write_headline(both, tmp_path)
    table = pd.read_csv(tmp_path / "headline.csv")
    assert list(table)[:11] == [
        "start", "fraction", "row", "kind", "kappa", "low", "high", "accuracy", "balanced_accuracy", "macro_f1", "recall_1",
    ]  # fmt: skip
    assert len(table) == 6
    assert (tmp_path / "headline.png").stat().st_size > 10_000
    page = (tmp_path / "headline.md").read_text(encoding="utf-8")
    semi = headline(both).query("row == 'self_training'").iloc[0]
    wanted = f"{semi['minus_twin']:.3f} [{semi['minus_twin_low']:.3f}, {semi['minus_twin_high']:.3f}] |"
    assert f"| ImageNet weights | 10 % | self_training | semi | 2 | {semi['kappa']:.3f} [" in page
    assert wanted in page
    assert page.count("| – | – |") == (table["kind"] != "semi").sum()
    write_headline({"random": both["random"], "imagenet": Results(RADIOGRAPHS_PRETRAINED, {})}, tmp_path)
    assert set(pd.read_csv(tmp_path / "headline.csv")["start"]) == {"random"}


def test_every_twin_is_a_row_of_its_study() -> None:
    for study in (RADIOGRAPHS, RADIOGRAPHS_PRETRAINED):
        for row in study.rows:
            assert not row.twin or (row.kind == "semi" and study.row(row.twin).kind == "twin")
