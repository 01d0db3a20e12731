"""Means over seeds, intervals and paired differences of stored runs."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from experiments.results.phantom import PHANTOM
from experiments.results.statistics import Results, draws
from experiments.results.store import Stored
from experiments.results.study import Cell, Run
from knee.errors import UserError
from knee.evaluation.intervals import bootstrap_by_patient
from knee.grades import load_grade_set
from knee.metrics import exceeded_share, grading_metrics

TEN = {row: Cell(row, 0.1) for row in ("supervised", "supervised_ema", "mean_teacher", "dcmt", "dcmt_nac")}


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
    found = Results(PHANTOM, {Run("dcmt", 0.1, 1): run}, samples=300).estimate(TEN["dcmt"], "teacher", "accuracy")
    right = (run.probabilities("teacher").argmax(1) == run.grades).astype(float)
    seed = zlib.crc32(np.stack([run.patients, run.grades]).astype("<i8").tobytes())
    plain = bootstrap_by_patient(np.mean, run.patients, [right], samples=300, seed=seed)
    assert (found.low, found.high) == pytest.approx(plain)


def test_draws_of_seeds_are_independent_so_their_mean_has_a_narrower_interval(results):
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


def test_other_test_images_are_an_error(results, made_up):
    results.runs["dcmt", 0.1, 2] = made_up("dcmt", 0.1, 7)
    with pytest.raises(UserError, match="different test images"):
        results.compare((TEN["dcmt"], "teacher"), (TEN["supervised"], "student"), "macro_f1")


def test_tta_is_the_mean_over_image_and_flip(made_up):
    run = made_up("dcmt", 0.1, 1)
    image, pair = run.probabilities("teacher"), run.probabilities("teacher + TTA")
    flipped = run.flipped("teacher")
    np.testing.assert_allclose(pair, (image + flipped) / 2, atol=2e-4)
    np.testing.assert_allclose(pair.sum(1), 1)
    found = draws(run, "teacher", samples=10)
    assert found["flip_changed"][0] == pytest.approx(np.mean(flipped.argmax(1) != image.argmax(1)))
    assert not {"flip_changed", "tiou"} & draws(run, "teacher + TTA", samples=10).keys()


def test_the_ema_row_reads_the_teacher_of_the_supervised_run(results):
    assert results.seeds(TEN["supervised_ema"]) == [1, 2, 3]
    ema = results.estimate(TEN["supervised_ema"], "teacher", "auc")
    assert ema == results.estimate(TEN["supervised"], "teacher", "auc")


def test_runs_with_equal_predictions_differ_by_zero_in_every_draw(results):
    """Separate draws for each run would give the same means and another interval."""
    results.runs["mean_teacher", 0.1, 1] = Stored(
        {**results.runs["dcmt", 0.1, 1].about, "name": "phantom-mean_teacher-f0.1-s1", "row": "mean_teacher"},
        results.runs["dcmt", 0.1, 1].table,
    )
    alone = Results(PHANTOM, {key: run for key, run in results.runs.items() if key[2] == 1}, samples=200)
    found = alone.compare((TEN["mean_teacher"], "teacher"), (TEN["dcmt"], "teacher"), "macro_f1")
    assert (found.value, found.low, found.high) == (0, 0, 0)
