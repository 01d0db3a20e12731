"""Reports and tables of the phantom: they follow the truth, with gaps and errors, and never name the grade."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee.errors import UserError
from knee.phantom import write_phantom
from knee.phantom.radiograph import RadiographTruth, draw_radiograph
from knee.phantom.reports import LEFT_OUT, WRONG, _facts, draw_patient, report_of, write_report


def truths() -> list:
    return [draw_radiograph(seed=1, patient=patient, side="L", size=32, negatives=0).truth for patient in range(60)]


def test_a_report_depends_only_on_its_film() -> None:
    truth = truths()[0]
    assert report_of(3, 7, "L", truth) == report_of(3, 7, "L", truth)
    assert report_of(3, 7, "L", truth) != report_of(3, 8, "L", truth)


def test_findings_are_stated_with_the_planned_share_of_gaps_and_errors() -> None:
    wide = [truth for truth in truths() if truth.joint_space_lateral_mm > 4.5]
    rng = np.random.default_rng(0)
    reports = [write_report(truth, "L", rng).lower() for truth in wide for _ in range(30)]
    lateral = [report for report in reports if "lateral compartment" in report or "laterally" in report]
    assert len(lateral) / len(reports) == pytest.approx(1 - LEFT_OUT, abs=0.03)
    right = [
        report
        for report in lateral
        if any(
            words in report
            for words in (
                "lateral compartment: a preserved",
                "laterally a preserved",
                "a preserved joint space in the lateral",
            )
        )
    ]
    assert len(right) / len(lateral) == pytest.approx(1 - WRONG, abs=0.03)


def test_no_report_names_the_grade() -> None:
    rng = np.random.default_rng(0)
    for truth in truths():
        words = write_report(truth, "R", rng).lower()
        assert not any(word in words for word in ("grade", "kellgren", "arthritis", "arthrosis", " kl"))


def test_the_table_depends_on_the_grade_weakly() -> None:
    mild = pd.DataFrame([draw_patient(0, patient, [0, 0])[0] for patient in range(400)])
    severe = pd.DataFrame([draw_patient(0, patient, [4, 4])[0] for patient in range(400)])
    for column, least, most in (("age", 7, 13), ("bmi", 2, 5), ("pain", 4, 8)):
        gap = pd.to_numeric(severe[column]).mean() - pd.to_numeric(mild[column]).mean()
        assert least < gap < most, column
    assert 0.05 < (mild == "").to_numpy().mean() < 0.15


def test_the_manifest_has_them_and_its_other_columns_stay(tmp_path: Path) -> None:
    with_reports = write_phantom(tmp_path / "a", kind="xray", patients=3, size=32, reports=True)
    without = write_phantom(tmp_path / "b", kind="xray", patients=3, size=32)
    one, two = (pd.read_csv(path, dtype=str) for path in (with_reports, without))
    assert list(one.columns) == [*two.columns, "age", "sex", "bmi", "pain", "report"]
    pd.testing.assert_frame_equal(one[list(two.columns)], two)
    assert one["report"].notna().all()
    assert (one.groupby("patient")["age"].nunique(dropna=False) == 1).all()


def test_slices_have_no_reports(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind mr has no reports; use --kind xray"):
        write_phantom(tmp_path / "a", kind="mr", patients=3, size=32, reports=True)


def test_reports_tell_films_apart() -> None:
    """A reader of the true findings who counts those that a report states finds most reports among 200 films."""
    films = [draw_radiograph(seed=1, patient=patient, side="R", size=32).truth for patient in range(200)]
    reports = [report_of(1, patient, "R", truth).lower() for patient, truth in enumerate(films)]
    phrases = [true_phrases(truth) for truth in films]
    scores = np.array([[stated(of_film, report) for report in reports] for of_film in phrases])
    own = scores.diagonal()[:, None]
    assert (scores >= own).sum(1).mean() < 10
    assert ((scores >= own).sum(1) == 1).mean() > 0.35


def stated(phrases: list[list[str]], report: str) -> int:
    """How many true findings of a film a report states."""
    return sum(any(phrase in report for phrase in of_finding) for of_finding in phrases)


def true_phrases(truth: RadiographTruth) -> list[list[str]]:
    found = []
    for fact in _facts(truth):
        words = next(words for limit, words in fact.steps if fact.value < limit)
        found.append([phrasing.format(words).lower() for phrasing in fact.phrasings])
    return found
