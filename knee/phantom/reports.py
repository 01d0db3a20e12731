"""Reports, age, sex, BMI and pain of the radiograph phantom, written from its true parameters.

A report states what a reader would of the film (joint space, osteophytes, sclerosis, deformity, cysts, joint line, bones,
patella, soft tissue, exposure), never the grade, in varied wording. Each finding may be left out, sizes are measured with an
error, and one stated finding in twenty is wrong. The table depends on the grade weakly, as in life.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knee.phantom.radiograph import CONDYLE_MM, RadiographTruth

WRONG = 0.05
"""Share of stated findings that are wrong."""
LEFT_OUT = 0.15
"""Share of findings that a report does not mention."""
MEASURED = 0.7
"""Share of stated sizes that are given in millimetres or degrees, too."""
REPORT_STREAM = 5
TABLE_COLUMNS = ("age", "sex", "bmi", "pain")

_SIZES = ((0.8, "no"), (2.0, "a tiny"), (4.0, "a small"), (6.0, "a moderate"), (np.inf, "a large"))
_SPACES = ((1.0, "bone on bone contact"), (2.4, "marked narrowing"), (3.4, "moderate narrowing"), (4.2, "mild narrowing"),
           (np.inf, "a preserved joint space"))  # fmt: skip
_SCLEROSIS = ((0.15, "no subchondral sclerosis"), (0.4, "slight {} subchondral sclerosis"),
              (0.7, "{} subchondral sclerosis"), (np.inf, "dense {} subchondral sclerosis"))  # fmt: skip
_DEFORMITY = (
    (0.25, "normal bone contours"),
    (1.6, "slight flattening of the {} plateau"),
    (np.inf, "depression of the {} plateau"),
)
_CYSTS = ((0.5, "no cysts"), (1.5, "one subchondral cyst"), (np.inf, "several subchondral cysts"))
_JOINT_LINE = (
    (-1.5, "joint line open on the lateral side"),
    (1.5, "parallel joint line"),
    (np.inf, "joint line open on the medial side"),
)
_SPINES = ((6.2, "flat tibial spines"), (7.4, "normal tibial spines"), (np.inf, "prominent tibial spines"))
_NOTCH = ((9.6, "shallow notch"), (11.4, "normal notch"), (np.inf, "deep notch"))
_PATELLA = ((-0.5, "patella medialised"), (3.5, "patella centered"), (np.inf, "patella lateralised"))
_HEIGHT = ((26.0, "low riding patella"), (31.5, "normal patellar height"), (np.inf, "high riding patella"))
_FIBULA = ((17.5, "high fibular head"), (20.5, "fibular head unremarkable"), (np.inf, "low fibular head"))
_FLESH = ((1.25, "thin soft tissue"), (1.35, "normal soft tissue"), (np.inf, "abundant soft tissue"))
_DENSITY = ((0.95, "reduced bone density"), (1.05, "normal bone density"), (np.inf, "dense bone"))
_EXPOSURE = ((0.5, "well exposed"), (np.inf, "overexposed film"))
_CONDYLES = ((77.0, "small bones"), (83.0, "bones of average size"), (np.inf, "large bones"))
_PLACES = ("medial femoral condyle", "lateral femoral condyle", "medial tibial plateau", "lateral tibial plateau")
_OPENINGS = ("", "AP view of the {side} knee. ", "{side} knee, standing. ", "X-ray {side} knee: ", "Findings: ")
_JOINERS = (". ", "; ", ", ")

Steps = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class _Fact:
    value: float
    steps: Steps
    phrasings: tuple[str, ...] = ("{}", "{} noted")
    noise: float = 0.0
    """Standard deviation of a reader's estimate."""
    grid: float = 0.0
    """A measure is stated in multiples of this; 0: none is."""
    unit: str = ""

    def written(self, rng: np.random.Generator) -> str:
        value = self.value + self.noise * float(rng.standard_normal())
        place = next(number for number, (limit, _) in enumerate(self.steps) if value < limit)
        if rng.random() < WRONG:
            place = int((place + rng.integers(1, len(self.steps))) % len(self.steps))
            limits = [limit for limit, _ in self.steps[:-1]]
            value = limits[place] - self.grid if place < len(limits) else limits[-1] + self.grid
        text = str(rng.choice(self.phrasings)).format(self.steps[place][1])
        measured = abs(round(value / self.grid) * self.grid) if self.grid else 0.0
        return f"{text} ({measured:g} {self.unit})" if measured and rng.random() < MEASURED else text


def write_report(truth: RadiographTruth, side: str, rng: np.random.Generator) -> str:
    """The report of one film; ``side`` is L or R."""
    facts = _facts(truth)
    stated = [fact.written(rng) for fact in facts if rng.random() >= LEFT_OUT] or [facts[0].written(rng)]
    if rng.random() < 0.5:
        rng.shuffle(stated)
    opening = str(rng.choice(_OPENINGS)).format(side={"L": "left", "R": "right"}[side])
    body = str(rng.choice(_JOINERS)).join(stated) + "."
    tidy: Callable[[str], str] = str if rng.random() < 0.5 else str.capitalize
    return opening + tidy(body)


def _facts(truth: RadiographTruth) -> list[_Fact]:
    """What a reader sees on the film, in the order of a report."""
    spurs = (
        truth.osteophyte_femur_medial_mm,
        truth.osteophyte_femur_lateral_mm,
        truth.osteophyte_tibia_medial_mm,
        truth.osteophyte_tibia_lateral_mm,
    )
    worse = "lateral" if truth.is_lateral else "medial"
    tilt = math.degrees(math.atan2(truth.joint_space_medial_mm - truth.joint_space_lateral_mm, 2 * CONDYLE_MM))
    return [
        _space("medial", truth.joint_space_medial_mm),
        _space("lateral", truth.joint_space_lateral_mm),
        *(_spur(place, size) for place, size in zip(_PLACES, spurs, strict=True)),
        _Fact(truth.sclerosis, _of(worse, _SCLEROSIS), ("{}", "{} is seen", "there is {}"), noise=0.05),
        _Fact(truth.deformity_mm, _of(worse, _DEFORMITY)),
        _Fact(truth.cysts, _CYSTS, ("{}", "{} visible")),
        _Fact(tilt, _JOINT_LINE, ("{}", "{} noted"), noise=0.5, grid=1.0, unit="degrees"),
        _Fact(truth.spines_mm, _SPINES, noise=0.3),
        _Fact(truth.notch_mm, _NOTCH, ("{}", "intercondylar region: {}"), noise=0.5),
        _Fact(truth.patella_lateral_mm, _PATELLA, noise=1.0),
        _Fact(truth.patella_height_mm, _HEIGHT, noise=1.0),
        _Fact(truth.fibula_mm, _FIBULA, noise=0.5),
        _Fact(truth.soft_tissue, _FLESH, noise=0.02),
        _Fact(truth.density, _DENSITY, noise=0.02),
        _Fact(truth.condyles_mm, _CONDYLES, noise=1.0, grid=2.0, unit="mm"),
        _Fact(truth.is_overexposed, _EXPOSURE),
    ]


def _of(compartment: str, steps: Steps) -> Steps:
    return [(limit, text.format(compartment)) for limit, text in steps]


def _space(compartment: str, width_mm: float) -> _Fact:
    phrasings = (f"{compartment} compartment: {{}}", f"{compartment}ly {{}}", f"{{}} in the {compartment} compartment")
    return _Fact(width_mm, _SPACES, phrasings, noise=0.3, grid=0.5, unit="mm")


def _spur(place: str, size_mm: float) -> _Fact:
    phrasings = (f"{{}} osteophyte at the {place}", f"{{}} spur of the {place}")
    return _Fact(size_mm, _SIZES, phrasings, noise=0.4, grid=1.0, unit="mm")


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
