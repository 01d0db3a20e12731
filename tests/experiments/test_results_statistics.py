"""Means over seeds, intervals, paired differences; the tables, claims and figure made of them."""

from __future__ import annotations

import json
import re
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest

from experiments.results.__main__ import STUDIES, load_results, write_everything
from experiments.results.code import ROOT
from experiments.results.data import PhantomPlan
from experiments.results.figure import f1_by_fraction
from experiments.results.jobs import make_job
from experiments.results.phantom import PHANTOM
from experiments.results.radiographs import RADIOGRAPHS
from experiments.results.statistics import Results, draws
from experiments.results.store import Stored, read_result, write_result
from experiments.results.study import Cell, Claim, run_name
from experiments.results.tables import footer, judge, published
from knee.errors import UserError
from knee.evaluation.intervals import bootstrap_by_patient
from knee.grades import load_grade_set
from knee.metrics import exceeded_share, grading_metrics

NUMBER = re.compile(r"(-?[0-9.]+) \[(-?[0-9.]+), (-?[0-9.]+)\]")
TEN = {row: Cell(row, 0.1) for row in ("supervised", "supervised_ema", "mean_teacher", "dcmt", "dcmt_nac")}


@pytest.fixture
def results(made_up) -> Results:
    """DC-MT grades nearly all right, supervised training half, the mean teacher as often; three seeds."""
    rights = {"supervised": 0.5, "mean_teacher": 0.5, "dcmt": 0.97}
    runs = {
        (row, 0.1, seed): made_up(row, 0.1, seed, right=right, iou=0.8 if row == "dcmt" else 0.1)
        for row, right in rights.items()
        for seed in (1, 2, 3)
    }
    return Results(PHANTOM, runs, samples=200)


def test_the_mean_is_that_of_the_metrics_of_each_seed(results):
    found = results.estimate(TEN["dcmt"], "teacher", "macro_f1")
    runs = [results.runs["dcmt", 0.1, seed] for seed in (1, 2, 3)]
    grade_set = load_grade_set("cartilage")
    each = [grading_metrics(run.probabilities("teacher"), run.grades, grade_set)["macro_f1"] for run in runs]
    assert list(found.by_seed.values()) == pytest.approx(each)
    assert found.value == pytest.approx(np.mean(each))
    tiou = results.estimate(TEN["dcmt"], "teacher", "tiou")
    assert tiou.value == pytest.approx(np.mean([exceeded_share(run.iou("teacher")).mean() for run in runs]))


def test_one_seed_has_the_interval_of_the_plain_bootstrap(made_up):
    run = made_up("dcmt", 0.1, 1)
    found = Results(PHANTOM, {("dcmt", 0.1, 1): run}, samples=300).estimate(TEN["dcmt"], "teacher", "accuracy")
    right = (run.probabilities("teacher").argmax(1) == run.grades).astype(float)
    seed = zlib.crc32(np.stack([run.patients, run.grades]).astype("<i8").tobytes())
    plain = bootstrap_by_patient(np.mean, run.patients, [right], samples=300, seed=seed)
    assert (found.low, found.high) == pytest.approx(plain)


def test_seeds_are_drawn_apart_so_their_mean_is_surer_than_each(results):
    three = results.estimate(TEN["supervised"], "student", "accuracy")
    widths = []
    for seed in (1, 2, 3):
        alone = Results(PHANTOM, {key: run for key, run in results.runs.items() if key[2] == seed}, samples=200)
        found = alone.estimate(TEN["supervised"], "student", "accuracy")
        widths.append(found.high - found.low)
    assert three.high - three.low < 0.8 * np.mean(widths)  # 1/√3 of it where all are alike


def test_differences_are_paired(results):
    same = results.compare((TEN["dcmt"], "teacher"), (TEN["dcmt"], "teacher"), "macro_f1")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    there = results.compare((TEN["dcmt"], "teacher"), (TEN["supervised"], "student"), "macro_f1")
    back = results.compare((TEN["supervised"], "student"), (TEN["dcmt"], "teacher"), "macro_f1")
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low > 0


def test_the_ratio_is_that_of_the_means(results):
    cells = [(TEN["dcmt"], "teacher"), (TEN["supervised"], "student")]
    first, second = (results.estimate(*cell, "tiou").value for cell in cells)
    found = results.compare(*cells, "tiou", ratio=True)
    assert found.value == pytest.approx(first / second)
    assert found.low < found.value < found.high


def test_only_seeds_of_both_are_compared(results):
    del results.runs["dcmt", 0.1, 2]
    found = results.compare((TEN["dcmt"], "teacher"), (TEN["supervised"], "student"), "macro_f1")
    assert list(found.by_seed) == [1, 3]


def test_other_test_images_are_refused(results, made_up):
    results.runs["dcmt", 0.1, 2] = made_up("dcmt", 0.1, 7)
    with pytest.raises(UserError, match="different test images"):
        results.compare((TEN["dcmt"], "teacher"), (TEN["supervised"], "student"), "macro_f1")


def test_a_mirrored_pair_is_the_mean_of_both_answers(made_up):
    run = made_up("dcmt", 0.1, 1)
    image, pair = run.probabilities("teacher"), run.probabilities("teacher + mirror")
    mirrored = run.mirrored("teacher")
    np.testing.assert_allclose(pair, (image + mirrored) / 2, atol=2e-4)
    np.testing.assert_allclose(pair.sum(1), 1)
    found = draws(run, "teacher", samples=10)
    assert found["flip_changed"][0] == pytest.approx(np.mean(mirrored.argmax(1) != image.argmax(1)))
    assert not {"flip_changed", "tiou"} & draws(run, "teacher + mirror", samples=10).keys()


def test_the_ema_row_reads_the_teacher_of_the_supervised_run(results):
    assert results.seeds(TEN["supervised_ema"]) == [1, 2, 3]
    ema = results.estimate(TEN["supervised_ema"], "teacher", "auc")
    assert ema == results.estimate(TEN["supervised"], "teacher", "auc")


@pytest.mark.parametrize(
    ("first", "second", "changes", "verdict"),
    [
        ("dcmt", "supervised", {"rule": "interval"}, "holds (interval excludes 0)"),
        ("supervised", "dcmt", {}, "does not hold (interval excludes 0)"),
        ("supervised", "dcmt", {"rule": "stated"}, "stated (interval excludes 0)"),
        ("mean_teacher", "supervised", {"rule": "interval"}, "does not hold (interval includes 0)"),
        ("mean_teacher", "supervised", {}, "undecided (interval includes 0)"),
        ("dcmt", "supervised", {"metric": "tiou", "kind": "ratio", "bound": 3.0}, "holds (interval excludes 3)"),
        ("dcmt", "dcmt_nac", {}, "not run"),
        ("dcmt", 0.5, {"rule": "interval"}, "holds (interval excludes 0)"),
    ],
)
def test_verdicts(results, first, second, changes, verdict):
    other = TEN[second] if isinstance(second, str) else second
    claim = Claim("text", "macro_f1", TEN[first], other)._replace(**changes)
    assert judge(results, claim)[1] == verdict


def test_tables_are_rebuilt_from_the_stored_files(results, tmp_path):
    for run in results.runs.values():
        write_result(tmp_path / "runs", run.table, run.about)
    loaded = load_results(PHANTOM, tmp_path / "runs", [1, 2, 3], samples=200)
    write_everything(loaded, tmp_path)
    table = pd.read_csv(tmp_path / "table3.csv")
    line = table.query("row == 'dcmt' and network == 'teacher' and metric == 'auc'").iloc[0]
    expected = results.estimate(TEN["dcmt"], "teacher", "auc")
    assert [line["mean"], line["low"], line["high"]] == pytest.approx(
        [expected.value, expected.low, expected.high], abs=1e-6
    )
    text = (tmp_path / "table3.md").read_text(encoding="utf-8")
    assert f"| DC-MT | 10 % | **teacher** | {results.estimate(TEN['dcmt'], 'teacher', 'recall').value:.3f} [" in text
    assert "from 6 runs of commit 0123456789ab (6)" in text
    assert "`make results`" in text
    brief = (tmp_path / "phantom.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| DC-MT | 10 % | teacher | ") for line in brief) == 1
    assert not any(line.startswith("| DC-MT | 10 % | student") for line in brief)
    claims = pd.read_csv(tmp_path / "phantom_claims.csv")
    assert {"undecided", "not run", "stated"} <= set(claims["verdict"].str.partition(" (")[0])
    assert (tmp_path / "f1_by_fraction.png").stat().st_size > 10_000


def test_the_radiographs_have_a_table_grade_by_grade(made_up, tmp_path):
    runs = {}
    for cell in RADIOGRAPHS.cells:
        run = made_up(cell.row, cell.fraction, 0, grades=5)
        runs[cell.row, cell.fraction, 0] = Stored(run.about | {"name": run_name("radiographs", *cell, 0)}, run.table)
    write_everything(Results(RADIOGRAPHS, runs, samples=50), tmp_path)
    text = (tmp_path / "radiographs_per_grade.md").read_text(encoding="utf-8")
    assert text.count("| F1-score | 4 |") == 2
    assert text.count("| QW Kappa |") == 2
    assert "Supervised (teacher + mirror)" in text
    assert "interval" in (tmp_path / "radiographs_claims.md").read_text(encoding="utf-8")


def test_what_the_full_part_alone_runs_is_left_out_until_it_has_and_the_rest_is_not(made_up, tmp_path):
    run = made_up("supervised", 0.1, 0, grades=5)
    runs = {
        ("supervised", 0.1, 0): Stored(run.about | {"name": run_name("radiographs", "supervised", 0.1, 0)}, run.table)
    }
    write_everything(Results(RADIOGRAPHS, runs, samples=20), tmp_path)
    table = (tmp_path / "radiographs_10.md").read_text(encoding="utf-8")
    assert "| Mean teacher, CLIP-KOA head | 10 % | **teacher + mirror** | – |" in table
    assert "flip terms" not in table
    brief, whole = ((tmp_path / f"radiographs_claims{end}.md").read_text(encoding="utf-8") for end in ("_brief", ""))
    claim = "kappa at 10 %: the mean teacher with flip terms above supervised"
    assert claim in whole and claim not in brief
    assert "kappa at 10 %: the mean teacher with CLIP-KOA head above supervised, interval above 0 | – | " in brief


def test_the_figure_draws_what_there_is_without_a_warning(results, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axis = f1_by_fraction(results).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["10 %"]
    assert len(axis.get_legend().get_texts()) == 4  # the three that ran, and EMA of the supervised one


def test_a_damaged_result_is_refused_by_name(results, tmp_path):
    run = results.runs["dcmt", 0.1, 1]
    write_result(tmp_path, run.table, run.about)
    assert read_result(tmp_path, run.name) is not None
    assert read_result(tmp_path, "phantom-none-f1-s1") is None
    (tmp_path / f"{run.name}.csv").write_text("patient,grade\n1,2\n")
    with pytest.raises(UserError, match=f"{run.name}.json and its CSV do not belong together"):
        read_result(tmp_path, run.name)
    (tmp_path / f"{run.name}.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path, run.name)


def test_runs_that_grade_alike_differ_by_nothing_in_every_draw(results):
    """A seed of its own for each run would give the same means and another interval."""
    results.runs["mean_teacher", 0.1, 1] = Stored(
        {**results.runs["dcmt", 0.1, 1].about, "name": "phantom-mean_teacher-f0.1-s1", "row": "mean_teacher"},
        results.runs["dcmt", 0.1, 1].table,
    )
    alone = Results(PHANTOM, {key: run for key, run in results.runs.items() if key[2] == 1}, samples=200)
    found = alone.compare((TEN["mean_teacher"], "teacher"), (TEN["dcmt"], "teacher"), "macro_f1")
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_footer_tells_the_seeds_of_each_share_and_the_steps_of_the_best_checkpoints(made_up):
    runs = {
        ("supervised", fraction, seed): made_up("supervised", fraction, seed)
        for fraction, seed in ((0.1, 0), (0.1, 1), (1.0, 0))
    }
    for number, run in enumerate(runs.values()):
        run.about["checkpoint_step"] = 100 * number
    text = footer(Results(RADIOGRAPHS, runs), [Cell("supervised", 0.1), Cell("supervised", 1.0)])[0]
    assert text.startswith("Mean over seeds 0, 1 at 10 %; seed 0 at 100 %; 95 % intervals")
    assert text.endswith("best by validation, after these steps: Supervised 10 %, 0, 100; Supervised 100 %, 200.")


def test_the_footer_names_rows_with_other_seeds_than_their_neighbours(made_up):
    runs = {
        (row, 0.1, seed): made_up(row, 0.1, seed)
        for row, seed in (("supervised", 0), ("supervised", 1), ("mean_teacher_mirror", 0))
    }
    text = footer(Results(RADIOGRAPHS, runs), [Cell("supervised", 0.1), Cell("mean_teacher_mirror", 0.1)])[0]
    assert text.startswith(
        "Mean over seeds 0, 1 at 10 % (Supervised); seed 0 at 10 % (Mean teacher, mirrored answers); 95 % intervals"
    )


def test_the_footer_names_runs_of_other_options_than_the_study_has(made_up):
    cells = [Cell("supervised", 0.1), Cell("mean_teacher", 0.1)]
    runs = {(cell.row, 0.1, seed): made_up(cell.row, 0.1, seed) for cell in cells for seed in (0, 1)}
    for (row, fraction, seed), run in runs.items():
        job = make_job(RADIOGRAPHS, Cell(row, fraction), seed, PhantomPlan())
        run.about["config"] = json.loads(json.dumps(job.config)) | {"name": "of another folder"}
    assert "other options" not in footer(Results(RADIOGRAPHS, runs), cells)[0]
    runs["mean_teacher", 0.1, 1].about["config"]["loss"]["ramp_start"] = 0.25
    text = footer(Results(RADIOGRAPHS, runs), cells)[0]
    assert text.endswith(" Trained with other options than the study has now: Mean teacher 10 %.")


def test_what_the_paper_printed_stands_beside_its_claims_alone(results, tmp_path):
    ours = Claim("text", "macro_f1", TEN["mean_teacher"], TEN["supervised_ema"])
    papers = Claim("text", "macro_f1", TEN["dcmt"], TEN["dcmt_nac"])
    ratio = Claim("text", "tiou", Cell("supervised_attention", 0.1), TEN["supervised"], kind="ratio")
    found = [published(PHANTOM, claim) for claim in (ours, papers, ratio, papers._replace(second=0.5))]
    assert found == [None, pytest.approx(0.791 - 0.766), pytest.approx(71.3 / 7.5), None]
    assert published(RADIOGRAPHS, RADIOGRAPHS.claims[0]) is None
    write_everything(results, tmp_path)
    text = (tmp_path / "phantom_claims_brief.md").read_text(encoding="utf-8")
    assert "| Claim | Number | Published | Each seed | Verdict |" in text


def test_a_result_cut_off_half_way_is_not_taken_for_whole(results, tmp_path, monkeypatch):
    """The JSON of an earlier run must not vouch for the CSV of a new one."""
    run = results.runs["dcmt", 0.1, 1]
    write_result(tmp_path, run.table, run.about)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.results.store.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path, run.table[::-1], run.about)
    assert read_result(tmp_path, run.name) is None


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_published_tables_are_those_of_the_stored_runs(study, tmp_path):
    """Means and seeds from the runs, the numbers of the Markdown from the CSV; intervals need all the draws."""
    published = ROOT / "docs" / "results"
    names = [table.name for table in study.tables] + [f"{study.name}_claims"]
    names = [name for name in names if (published / f"{name}.csv").exists()]
    write_everything(load_results(study, published / "runs", study.all_seeds, samples=2), tmp_path)
    for name in names:
        there, here = (pd.read_csv(folder / f"{name}.csv") for folder in (published, tmp_path))
        exact = [column for column in there if column not in ("low", "high", "verdict")]
        pd.testing.assert_frame_equal(there[exact], here[exact])
        text = (published / f"{name}.md").read_text(encoding="utf-8")
        if "stands" in there:
            there = there[there["stands"]]
        shown = np.array([[float(part) for part in one] for one in NUMBER.findall(text)])
        if "verdict" in there:
            there = there[there["verdict"] != "not run"]
        for line in there[["mean", "low", "high"]].to_numpy():
            assert np.abs(shown - line).max(axis=1).min() < 0.00051, (name, line)  # three digits of six
