"""Tables, claims and figure."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest

from experiments.results.__main__ import STUDIES, load_results
from experiments.results.jobs import ROOT
from experiments.results.phantom import PHANTOM
from experiments.results.radiographs import RADIOGRAPHS
from experiments.results.statistics import Results
from experiments.results.store import write_result
from experiments.results.study import Cell, Claim, Run
from experiments.results.tables import f1_by_fraction, judge, main_table, published, write_tables

PUBLISHED = ROOT / "docs" / "results"
NUMBER = re.compile(r"(-?[0-9.]+) \[(-?[0-9.]+), (-?[0-9.]+)\]")
TEN = {row: Cell(row, 0.1) for row in ("supervised", "supervised_ema", "mean_teacher", "dcmt", "dcmt_nac")}


@pytest.mark.parametrize(
    ("first", "second", "changes", "verdict"),
    [
        ("dcmt", "supervised", {"rule": "interval"}, "holds (interval excludes 0)"),
        ("supervised", "dcmt", {}, "does not hold (interval excludes 0)"),
        ("supervised", "dcmt", {"rule": "none"}, "reported (interval excludes 0)"),
        ("mean_teacher", "supervised", {"rule": "interval"}, "does not hold (interval includes 0)"),
        ("mean_teacher", "supervised", {}, "undecided (interval includes 0)"),
        ("dcmt", "supervised", {"metric": "tiou", "kind": "ratio", "bound": 3.0}, "holds (interval excludes 3)"),
        ("dcmt", "dcmt_nac", {}, "not run"),
        ("dcmt", 0.5, {"rule": "interval"}, "holds (interval excludes 0)"),
    ],
)
def test_verdicts(results, first, second, changes, verdict):
    other = TEN[second] if isinstance(second, str) else second
    claim = Claim("macro_f1", TEN[first], other)._replace(**changes)
    assert judge(results, claim)[1] == verdict


def test_tables_are_written_from_the_stored_files(results, tmp_path):
    for run in results.runs.values():
        write_result(tmp_path / "runs", run.table, run.about)
    loaded = load_results(PHANTOM, tmp_path / "runs", samples=200)
    write_tables(loaded, tmp_path)
    table = pd.read_csv(tmp_path / "phantom.csv")
    line = table.query("row == 'dcmt' and network == 'teacher' and metric == 'auc'").iloc[0]
    expected = results.estimate(TEN["dcmt"], "teacher", "auc")
    assert [line["mean"], line["low"], line["high"]] == pytest.approx(
        [expected.value, expected.low, expected.high], abs=1e-6
    )
    text = (tmp_path / "phantom.md").read_text(encoding="utf-8")
    recall = results.estimate(TEN["dcmt"], "teacher", "recall")
    assert f"| DC-MT | **teacher** | 1, 2, 3 | {recall.value:.3f} [" in text
    assert "| DC-MT (NAC) | *as published* | – | 0.768 |" in text, "published, not run"
    assert text.count("| Supervised, EMA evaluated |") == 1, "its student is that of the row above"
    assert "from 9 runs of commit 0123456789ab (9)" in text
    assert "Trained with another config or version than the study has now: phantom-dcmt-f0.1-s1, " in text
    claims = pd.read_csv(tmp_path / "phantom_claims.csv")
    assert {"undecided", "not run", "reported"} <= set(claims["verdict"].str.partition(" (")[0])
    text = (tmp_path / "phantom_claims.md").read_text(encoding="utf-8")
    assert "| Metric | First | Second | Claim | Number | Published | Each seed | Verdict |" in text
    assert (tmp_path / "f1_by_fraction.png").stat().st_size > 10_000


def test_the_radiographs_have_a_table_by_grade_and_only_cells_that_ran_have_lines(made_up, tmp_path):
    runs = {run: made_up(*run, grades=5, study="radiographs") for run in RADIOGRAPHS.trainings(full=False)}
    write_tables(Results(RADIOGRAPHS, runs, samples=20), tmp_path)
    text = (tmp_path / "radiographs_per_grade.md").read_text(encoding="utf-8")
    assert text.count("| F1-score | 4 |") == text.count("| QW Kappa |") == 2
    assert "Supervised (teacher + TTA)" in text
    table = (tmp_path / "radiographs.md").read_text(encoding="utf-8")
    assert "| Mean teacher, CLIP-KOA head | **teacher + TTA** | 0 | 5 |" in table
    assert "flip losses" not in table
    claims = (tmp_path / "radiographs_claims.md").read_text(encoding="utf-8")
    assert (
        "| Mean teacher, flip losses, 10 %, teacher + TTA | Supervised, 10 %, teacher + TTA | interval above 0 | – |"
        in claims
    )
    assert "Published" not in claims


def test_the_figure_draws_what_there_is_without_a_warning(results):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axis = f1_by_fraction(results).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["10 %"]
    assert len(axis.get_legend().get_texts()) == 4  # the three that ran, and EMA of the supervised one


def test_each_line_names_its_seeds_and_the_steps_of_the_best_checkpoints(made_up):
    runs = {
        run: made_up(*run, grades=5)
        for run in (Run("supervised", at, seed) for at, seed in ((0.1, 0), (0.1, 1), (1.0, 0)))
    }
    for number, run in enumerate(runs.values()):
        run.about["checkpoint_step"] = 100 * number
    text = "\n".join(main_table(Results(RADIOGRAPHS, runs, samples=20)))
    assert "| Supervised | **teacher + TTA** | 0, 1 | 0, 100 |" in text
    assert "| Supervised | **teacher + TTA** | 0 | 200 |" in text


def test_published_numbers_are_compared_only_with_published_numbers():
    ours = Claim("macro_f1", TEN["mean_teacher"], TEN["supervised_ema"])
    papers = Claim("macro_f1", TEN["dcmt"], TEN["dcmt_nac"])
    ratio = Claim("tiou", Cell("supervised_attention", 0.1), TEN["supervised"], kind="ratio")
    found = [published(PHANTOM, claim) for claim in (ours, papers, ratio, papers._replace(second=0.5))]
    assert found == [None, pytest.approx(0.791 - 0.766), pytest.approx(71.3 / 7.5), None]
    assert published(RADIOGRAPHS, RADIOGRAPHS.claims[0]) is None


@pytest.mark.parametrize("study", [name for name in STUDIES if (PUBLISHED / f"{name}.csv").exists()])
def test_published_tables_are_those_of_the_stored_runs(study, tmp_path):
    """Means and seeds from the runs, the numbers of the Markdown from the CSV; intervals need all the draws."""
    write_tables(load_results(STUDIES[study], PUBLISHED / "runs", samples=2), tmp_path)
    for name in (study, f"{study}_claims"):
        there, here = (pd.read_csv(one / f"{name}.csv") for one in (PUBLISHED, tmp_path))
        exact = [column for column in there if column not in ("low", "high", "verdict")]
        pd.testing.assert_frame_equal(there[exact], here[exact])
        text = (PUBLISHED / f"{name}.md").read_text(encoding="utf-8")
        there = (
            there[there["verdict"] != "not run"]
            if "verdict" in there
            else there[there["metric"].isin(STUDIES[study].metrics)]
        )
        shown = np.array([[float(part) for part in one] for one in NUMBER.findall(text)])
        for line in there[["mean", "low", "high"]].to_numpy():
            assert np.abs(shown - line).max(axis=1).min() < 0.00051, (name, line)  # three digits of six
