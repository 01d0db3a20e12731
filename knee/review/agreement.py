"""How well readers agree with each other and with the model: quadratic kappa, with intervals over patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from knee.evaluation.intervals import bootstrap_by_patient
from knee.metrics import adjacent_accuracy, quadratic_kappa
from knee.review.key import KeyedCase
from knee.review.verdicts import latest_verdicts
from knee.review.verdicts_file import Verdict


@dataclass(frozen=True)
class Agreement:
    """Two graders on the cases that both graded."""

    first: str
    second: str
    cases: int
    kappa: float
    """Quadratic-weighted; NaN where it is undefined."""
    low: float
    high: float
    """95 % interval by bootstrap over patients; NaN with fewer than two patients."""
    exact: float
    """Share of equal grades."""
    adjacent: float
    """Share of grades at most one apart."""
    left_out: int = 0
    """Cases of the reader whose model grade comes from an earlier or unknown model. One kappa must not mix two models."""

    def __str__(self) -> str:
        result = "no case in common"
        if self.cases:
            interval = f" ({self.low:.2f} to {self.high:.2f})" if np.isfinite([self.low, self.high]).all() else ""
            result = (
                f"kappa {self.kappa:.2f}{interval}, "
                f"{self.exact:.0%} equal, {self.adjacent:.0%} within one grade, {self.cases} cases"
            )
        left_out = f"; {self.left_out} not known to be of the latest model are left out" if self.left_out else ""
        return f"{self.first} – {self.second}: {result}{left_out}"


def agreements(
    verdicts: Iterable[Verdict], key: Mapping[str, KeyedCase], *, samples: int = 1000, seed: int = 0
) -> list[Agreement]:
    """Every pair of readers, then each reader with the teacher and with the student.

    Only blind grades count: a reader who has seen the model's grade agrees with it more often. The model is that of the
    latest export (the key's last case); cases of other models are counted in ``left_out``. Bad images and pairs without a
    case in common are left out.
    """
    grades: dict[str, dict[str, int]] = {}
    for verdict in latest_verdicts(verdicts).values():
        if verdict.blind_grade is not None and verdict.verdict != "bad_image" and verdict.case in key:
            grades.setdefault(verdict.reviewer, {})[verdict.case] = verdict.blind_grade
    readers = sorted(grades)
    latest = _of_the_latest_model(key)
    models = {
        "teacher": {name: case.teacher_grade for name, case in latest.items()},
        "student": {name: case.student_grade for name, case in latest.items()},
    }
    pairs = [(one, other, grades[one], grades[other]) for one, other in combinations(readers, 2)]
    found = [_agreement(one, other, a, b, key, samples, seed) for one, other, a, b in pairs]
    for name, predicted in models.items():
        for reader in readers:
            agreement = _agreement(reader, name, grades[reader], predicted, key, samples, seed)
            found.append(replace(agreement, left_out=len(grades[reader].keys() - latest.keys())))
    return [agreement for agreement in found if agreement.cases or agreement.left_out]


def _of_the_latest_model(key: Mapping[str, KeyedCase]) -> dict[str, KeyedCase]:
    """The cases that were graded by the model of the latest export."""
    hashes = [case.model_hash for case in key.values()]
    return {name: case for name, case in key.items() if case.model_hash == hashes[-1]}


def _agreement(
    first: str,
    second: str,
    given: Mapping[str, int],
    other: Mapping[str, int],
    key: Mapping[str, KeyedCase],
    samples: int,
    seed: int,
) -> Agreement:
    common = sorted(given.keys() & other.keys())
    if not common:
        nan = float("nan")
        return Agreement(first, second, 0, nan, nan, nan, nan, nan)
    a, b = np.array([given[case] for case in common]), np.array([other[case] for case in common])
    patients = [key[case].patient for case in common]
    low, high = bootstrap_by_patient(quadratic_kappa, patients, (a, b), samples=samples, seed=seed)
    return Agreement(
        first, second, len(common), quadratic_kappa(a, b), low, high, float(np.mean(a == b)), adjacent_accuracy(a, b)
    )
