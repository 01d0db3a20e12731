"""How well readers agree with each other and with the model: quadratic kappa, with intervals over patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from knee.intervals import bootstrap_by_patient
from knee.metrics import adjacent_accuracy, quadratic_kappa
from knee.review.key import KeyedCase
from knee.review.verdicts import Verdict, latest_verdicts


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

    def __str__(self) -> str:
        return (
            f"{self.first} – {self.second}: kappa {self.kappa:.2f} ({self.low:.2f} to {self.high:.2f}), "
            f"{self.exact:.0%} equal, {self.adjacent:.0%} within one grade, {self.cases} cases"
        )


def agreements(
    verdicts: Iterable[Verdict], key: Mapping[str, KeyedCase], *, samples: int = 1000, seed: int = 0
) -> list[Agreement]:
    """Every pair of readers, then each reader with the teacher and with the student.

    Blind grades alone count: a grade given with the model's in view agrees with it too well. Bad images and pairs
    without a case in common are left out.
    """
    grades: dict[str, dict[str, int]] = {}
    for verdict in latest_verdicts(verdicts).values():
        if verdict.blind_grade is not None and verdict.verdict != "bad_image" and verdict.case in key:
            grades.setdefault(verdict.reviewer, {})[verdict.case] = verdict.blind_grade
    readers = sorted(grades)
    models = {
        "teacher": {name: case.teacher_grade for name, case in key.items()},
        "student": {name: case.student_grade for name, case in key.items()},
    }
    pairs = [(one, other, grades[one], grades[other]) for one, other in combinations(readers, 2)]
    pairs += [(reader, name, grades[reader], said) for name, said in models.items() for reader in readers]
    found = (_agreement(one, other, a, b, key, samples, seed) for one, other, a, b in pairs)
    return [agreement for agreement in found if agreement.cases]


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
        return Agreement(first, second, 0, *[float("nan")] * 5)
    a, b = np.array([given[case] for case in common]), np.array([other[case] for case in common])
    patients = [key[case].patient for case in common]
    low, high = bootstrap_by_patient(quadratic_kappa, patients, (a, b), samples=samples, seed=seed)
    return Agreement(
        first, second, len(common), quadratic_kappa(a, b), low, high, float(np.mean(a == b)), adjacent_accuracy(a, b)
    )
