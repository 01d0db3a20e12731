"""A knee's grade is that of its slices: of their mean probabilities, or of the most severe ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from knee.evaluation.by_knee import by_knee, knee_predictions, knee_probabilities
from knee.evaluation.predictions import Predictions
from knee.nn.slice_pooling import pool_slices

NAMES = ("none", "mild", "severe")


def slices(*rows: tuple[str, int | None, float, float, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["image", "predicted", "p_0", "p_1", "p_2"]).astype({"predicted": "Int64"})
    return table.assign(side="L")


def test_the_mean_decides_and_not_the_majority() -> None:
    table = slices(("a#0", 1, 0.4, 0.6, 0.0), ("a#1", 1, 0.4, 0.6, 0.0), ("a#2", 0, 1.0, 0.0, 0.0), ("b", 2, 0, 0, 1))
    (knee,) = by_knee(table, {"a#0": "a", "a#1": "a", "a#2": "a", "b": ""}, NAMES).to_dict("records")
    assert knee["predicted"] == 0
    assert knee["predicted_name"] == "none"
    assert [round(knee[f"p_{grade}"], 12) for grade in range(3)] == [0.6, 0.4, 0.0]
    assert (knee["series"], knee["side"], knee["slices"], knee["without_grade"]) == ("a", "L", 3, 0)


def test_slices_without_a_grade_are_counted_and_left_out_of_the_mean() -> None:
    nothing = float("nan")
    table = slices(("a#0", 2, 0.0, 0.2, 0.8), ("a#1", None, nothing, nothing, nothing), ("b#0", None, *[nothing] * 3))
    found = by_knee(table, {"a#0": "a", "a#1": "a", "a#2": "a", "b#0": "b", "c#0": "c"}, NAMES)
    assert found["series"].tolist() == ["a", "b", "c"]
    assert found["slices"].tolist() == [3, 1, 1]
    assert found["without_grade"].tolist() == [2, 1, 1]
    assert found["predicted"].isna().tolist() == [False, True, True]
    assert found["predicted_name"].isna().tolist() == [False, True, True]
    assert found.loc[0, ["p_0", "p_1", "p_2"]].tolist() == [0.0, 0.2, 0.8]
    assert found.loc[0, "predicted"] == 2


def test_no_series_no_rows() -> None:
    assert by_knee(slices(("a", 0, 1, 0, 0)), {"a": ""}, NAMES).empty


SPARED, WORST = [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]


def test_with_severest_the_worst_slices_decide() -> None:
    shares = np.array([SPARED, SPARED, WORST, SPARED])
    np.testing.assert_allclose(knee_probabilities(shares, severest=True), WORST)
    np.testing.assert_allclose(knee_probabilities(shares, severest=False), [0.625, 0.1, 0.275])
    table = slices(*[(f"a#{number}", int(np.argmax(p)), *p) for number, p in enumerate(shares.tolist())])
    images = {f"a#{number}": "a" for number in range(4)}
    assert by_knee(table, images, NAMES, severest=True)["predicted"].tolist() == [2]
    assert by_knee(table, images, NAMES)["predicted"].tolist() == [0]
    torn = slices(("a#0", 0, 0.6, 0.1, 0.3), ("a#1", 2, 0.3, 0.2, 0.5))
    called = [by_knee(torn, {"a#0": "a", "a#1": "a"}, NAMES, decision=rule) for rule in ("likeliest", "median")]
    assert [one["predicted"].tolist() for one in called] == [[0], [1]]


def test_predictions_of_knees_keep_the_order_of_their_first_slices() -> None:
    shares = np.array([SPARED, WORST, SPARED, WORST, SPARED], np.float32)
    images = Predictions(
        rows=np.array([7, 3, 9, 4, 5]),
        probabilities=shares,
        predicted=shares.argmax(1),
        entropy=np.zeros(5),
        map_maximum=np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        empty=np.array([True, False, True, False, True]),
        iou=np.full(5, 0.5),
    )
    found = knee_predictions(images, ["b", "a", "b", "", "b"], severest=False)
    assert found.rows.tolist() == [7, 3, 4]
    assert found.predicted.tolist() == [0, 2, 2]
    assert found.map_maximum.tolist() == [5.0, 2.0, 4.0]
    assert found.empty.tolist() == [True, False, False]
    assert np.isnan(found.iou).all()
    np.testing.assert_allclose(found.entropy, -(shares[[0, 1, 3]] * np.log(shares[[0, 1, 3]])).sum(1), rtol=1e-5)


def test_slices_are_pooled_as_in_training() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 3, 4, 5, 9, 20):
        shares = rng.dirichlet(np.ones(5), count)
        wanted = pool_slices(torch.from_numpy(np.log(shares))[None])[0].softmax(0)
        np.testing.assert_allclose(knee_probabilities(shares, severest=True), wanted.numpy(), rtol=1e-9)
