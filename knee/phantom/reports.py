"""Reports, age, sex, BMI and pain of the radiograph phantom, written from its true parameters.

A report states findings (joint space, osteophytes, sclerosis, deformity, cysts), never the grade, in varied wording; each
finding may be left out, and one stated finding in twenty is wrong. The table depends on the grade weakly, as in life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knee.phantom.radiograph import RadiographTruth

WRONG = 0.05
"""Share of stated findings that are wrong."""
LEFT_OUT = 0.15
"""Share of findings that a report does not mention."""
REPORT_STREAM = 5
TABLE_COLUMNS = ("age", "sex", "bmi", "pain")

_SIZES = ((0.8, "no"), (2.0, "a tiny"), (4.0, "a small"), (6.0, "a moderate"), (np.inf, "a large"))
_SPACES = ((1.0, "bone on bone contact"), (2.4, "marked narrowing"), (3.4, "moderate narrowing"), (4.2, "mild narrowing"),
           (np.inf, "a preserved joint space"))  # fmt: skip
_SCLEROSIS = ((0.15, "no subchondral sclerosis"), (0.4, "slight subchondral sclerosis"), (0.7, "subchondral sclerosis"),
              (np.inf, "dense subchondral sclerosis"))  # fmt: skip
_DEFORMITY = (
    (0.25, "normal bone contours"),
    (1.6, "slight flattening of the plateau"),
    (np.inf, "depression of the plateau"),
)
_CYSTS = ((0.5, "no cysts"), (1.5, "one subchondral cyst"), (np.inf, "several subchondral cysts"))
_PLACES = ("medial femoral condyle", "lateral femoral condyle", "medial tibial plateau", "lateral tibial plateau")
_OPENINGS = ("", "AP view of the {side} knee. ", "{side} knee, standing. ", "X-ray {side} knee: ", "Findings: ")
_JOINERS = (". ", "; ", ", ")

Steps = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class _Fact:
    value: float
    steps: Steps
    phrasings: tuple[str, ...]

    def written(self, rng: np.random.Generator) -> str:
        place = next(number for number, (limit, _) in enumerate(self.steps) if self.value < limit)
        if rng.random() < WRONG:
            place = int((place + rng.integers(1, len(self.steps))) % len(self.steps))
        return str(rng.choice(self.phrasings)).format(self.steps[place][1])


def write_report(truth: RadiographTruth, side: str, rng: np.random.Generator) -> str:
    """The report of one film; ``side`` is L or R."""
    facts = [_space("medial", truth.joint_space_medial_mm), _space("lateral", truth.joint_space_lateral_mm)]
    spurs = (
        truth.osteophyte_femur_medial_mm,
        truth.osteophyte_femur_lateral_mm,
        truth.osteophyte_tibia_medial_mm,
        truth.osteophyte_tibia_lateral_mm,
    )
    facts += [_spur(place, size) for place, size in zip(_PLACES, spurs, strict=True)]
    facts += [
        _Fact(truth.sclerosis, _SCLEROSIS, ("{}", "{} is seen", "there is {}")),
        _Fact(truth.deformity_mm, _DEFORMITY, ("{}", "{} noted")),
        _Fact(truth.cysts, _CYSTS, ("{}", "{} visible")),
    ]
    stated = [fact.written(rng) for fact in facts if rng.random() >= LEFT_OUT] or [facts[0].written(rng)]
    if rng.random() < 0.5:
        rng.shuffle(stated)
    opening = str(rng.choice(_OPENINGS)).format(side={"L": "left", "R": "right"}[side])
    body = str(rng.choice(_JOINERS)).join(stated) + "."
    tidy: Callable[[str], str] = str if rng.random() < 0.5 else str.capitalize
    return opening + tidy(body)


def _space(compartment: str, width_mm: float) -> _Fact:
    phrasings = (f"{compartment} compartment: {{}}", f"{compartment}ly {{}}", f"{{}} in the {compartment} compartment")
    return _Fact(width_mm, _SPACES, phrasings)


def _spur(place: str, size_mm: float) -> _Fact:
    return _Fact(size_mm, _SIZES, (f"{{}} osteophyte at the {place}", f"{{}} spur of the {place}"))


def draw_patient(seed: int, patient: int, grades: Sequence[int]) -> list[dict[str, str]]:
    """Age, sex, BMI and pain for each knee of a patient, as a manifest's fields; one field in ten is empty.

    Age, sex and BMI are the patient's and depend on the worse grade; pain (0–20, as WOMAC) is each knee's.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, REPORT_STREAM, patient]))
    worst = max(grades)
    whole = {
        "age": f"{np.clip(rng.normal(56 + 2.5 * worst, 9), 35, 90):.0f}",
        "sex": "F" if rng.random() < 0.5 + 0.05 * worst else "M",
        "bmi": f"{np.clip(rng.normal(26 + 0.9 * worst, 4), 17, 50):.1f}",
    }
    rows = []
    for grade in grades:
        pain = f"{np.clip(rng.normal(2 + 1.6 * grade, 3), 0, 20):.0f}"
        rows.append({**whole, "pain": pain})
    gaps = {name for name in whole if rng.random() < 0.1}
    return [
        {name: "" if name in gaps or (name == "pain" and rng.random() < 0.1) else value for name, value in row.items()}
        for row in rows
    ]


def report_of(seed: int, patient: int, side: str, truth: RadiographTruth) -> str:
    """The report of a patient's film; depends only on the arguments."""
    stream = np.random.SeedSequence([seed, REPORT_STREAM, patient, 1 + (side == "R")])
    return write_report(truth, side, np.random.default_rng(stream))
