"""Drawn osteoarthritis: grades have their shares, medial disease prevails."""

import numpy as np

from knee.phantom.arthritis import GRADE_SHARES, draw_grades

from .samples import knees


def test_medial_disease_prevails() -> None:
    share = np.mean([knee.is_lateral for grade in range(5) for knee in knees(grade)])
    assert 0.10 < share < 0.24


def test_grades_have_their_shares_and_the_two_knees_are_related() -> None:
    rng = np.random.default_rng(0)
    pairs = np.asarray([draw_grades(rng) for _ in range(4000)])
    shares = np.bincount(pairs.ravel(), minlength=5) / pairs.size
    assert np.abs(shares - GRADE_SHARES).max() < 0.02
    assert 0.45 < (pairs[:, 0] == pairs[:, 1]).mean() < 0.65
