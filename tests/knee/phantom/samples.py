"""Drawn knees that the tests of this folder share."""

import numpy as np

from knee.phantom.anatomy import Patient, draw_patient
from knee.phantom.arthritis import Arthritis, draw_arthritis


def knees(grade: int, count: int = 200) -> list[Arthritis]:
    rng = np.random.default_rng(grade)
    return [draw_arthritis(rng, grade) for _ in range(count)]


SLICES = 8


def patient(number: int, seed: int = 0) -> Patient:
    return draw_patient(np.random.default_rng([seed, number]), SLICES)
