from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from knee.errors import UserError
from knee.review.cases import MEASURES, doubtfulness, most_doubtful, total_variation


def test_doubts_are_known_values(make_case):
    case = make_case(3)
    certain, torn = np.array([1.0, 0, 0, 0, 0]), np.full(5, 0.2)
    case = replace(
        case,
        student=replace(case.student, probabilities=torn),
        teacher=replace(case.teacher, probabilities=certain),
        grade=4,
        overlap=0.25,
        flip_disagreement=0.5,
    )
    assert case.doubts == pytest.approx({"distance": 0.8, "flip": 0.5, "entropy": 0, "overlap": 0.75, "mismatch": 1})
    assert doubtfulness(case) == pytest.approx(0.61)
    assert replace(case, teacher=case.student).entropy == pytest.approx(1)
    assert set(replace(case, grade=None, overlap=None).doubts) == {"distance", "flip", "entropy"}


def test_a_view_calls_the_grade_of_its_decision(make_case):
    torn = replace(make_case(3).teacher, probabilities=np.array([0.4, 0.05, 0.2, 0.3, 0.05]))
    assert (replace(torn, decision="likeliest").grade, replace(torn, decision="median").grade) == (0, 2)


def test_total_variation_is_symmetric_and_bounded():
    rng = np.random.default_rng(0)
    for p, q in pairwise(rng.dirichlet(np.ones(4), 20)):
        assert 0 <= total_variation(p, q) == total_variation(q, p) <= 1
        assert total_variation(p, p) == 0


@pytest.mark.parametrize("by", [*MEASURES, "all"])
def test_the_most_doubtful_come_first(make_case, by):
    cases = [make_case(number) for number in range(20)]
    chosen = most_doubtful(iter(cases), 5, by=by)
    scores = [doubtfulness(case, by) for case in chosen]
    assert scores == sorted((doubtfulness(case, by) for case in cases), reverse=True)[:5]


def test_other_choices_are_refused(make_case):
    with pytest.raises(UserError, match="'size'; choose one of distance, flip, entropy"):
        most_doubtful([make_case(1)], 1, by="size")
    with pytest.raises(UserError, match="0 cases"):
        most_doubtful([make_case(1)], 0)
