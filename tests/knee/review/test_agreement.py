"""Agreement of readers with each other and with the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from knee.review.agreement import agreements
from knee.review.key import KeyedCase
from knee.review.verdicts_file import Verdict

from .readings import _verdict


def test_agreement_is_that_of_blind_grades():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 60)
    key = {f"c{n}": KeyedCase(f"c{n}", f"{n}.png", f"p{n // 2}", "train", 0, int(truth[n])) for n in range(60)}
    verdicts = [_verdict(f"c{n}", int(truth[n])) for n in range(60)]
    verdicts += [_verdict(f"c{n}", int((truth[n] + n % 2) % 5), "R2") for n in range(40)]
    verdicts += [Verdict("c50", "R2", "2025-03-01T12:00:00Z", "run", "hash", None, 4, "agree", "")]
    between, teacher_one, teacher_two, *student = agreements(verdicts, key, samples=200)
    assert (between.first, between.second, between.cases) == ("R1", "R2", 40)
    assert between.exact == pytest.approx(0.5)
    assert between.low < between.kappa < between.high < 1
    assert (teacher_one.kappa, teacher_one.exact, teacher_one.low) == (1, 1, 1)
    assert teacher_two.kappa == between.kappa
    assert [found.second for found in student] == ["student", "student"]
    assert student[0].kappa == pytest.approx(0)
    assert "40 cases" in str(between)


def test_of_one_patient_the_agreement_has_no_interval():
    key = {f"c{n}": KeyedCase(f"c{n}", f"{n}.png", "p1", "train", n % 3, n % 3) for n in range(6)}
    teacher, _ = agreements([_verdict(f"c{n}", n % 3) for n in range(6)], key, samples=10)
    assert str(teacher) == "R1 – teacher: kappa 1.00, 100% equal, 100% within one grade, 6 cases"


def test_agreement_with_the_model_is_that_of_the_latest_export_s_model():
    """A later export with other weights took over some cases of the key: one kappa over both would be of no model."""
    key = {f"c{n}": KeyedCase(f"c{n}", f"{n}.png", f"p{n}", "train", n % 5, n % 5, "first") for n in range(20)}
    key |= {f"c{n}": replace(key.pop(f"c{n}"), teacher_grade=0, model_hash="second") for n in range(10)}
    verdicts = [_verdict(f"c{n}", n % 5) for n in range(20)]
    teacher, student = agreements(verdicts, key, samples=100)
    assert (teacher.cases, teacher.left_out, teacher.exact) == (10, 10, pytest.approx(0.2))
    assert (student.cases, student.left_out, student.exact) == (10, 10, 1)
    assert str(teacher).endswith("10 cases; 10 not known to be of the latest model are left out")
    both = [*verdicts, *(replace(verdict, reviewer="R2") for verdict in verdicts)]
    assert (agreements(both, key, samples=100)[0].cases, agreements(both, key, samples=100)[0].left_out) == (20, 0)
    teacher, _ = agreements(verdicts[10:], key, samples=100)
    assert str(teacher) == "R1 – teacher: no case in common; 10 not known to be of the latest model are left out"
