"""Synthetic results: stored runs whose grades and probabilities come from a seed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # experiments are run from the repository, not installed

from experiments.results.phantom import PHANTOM
from experiments.results.statistics import Results
from experiments.results.store import Stored
from experiments.results.study import Run, run_name

Made = Callable[..., Stored]


@pytest.fixture
def made_up() -> Made:
    """A stored run: ``made_up("dcmt", 0.1, 1, right=0.8)``; ``right`` is how often the network is right.

    Runs of one seed have the same patients and grades, whatever else differs.
    """

    def build(
        row: str,
        fraction: float,
        seed: int,
        *,
        right: float = 0.8,
        iou: float = 0.5,
        grades: int = 3,
        patients: int = 20,
        study: str = "phantom",
    ) -> Stored:
        data, own = np.random.default_rng(seed), np.random.default_rng([seed, len(row), round(100 * fraction)])
        columns: dict[str, Any] = {"patient": np.repeat(np.arange(patients), 4)}
        columns["grade"] = data.integers(0, grades, 4 * patients)
        for network in ("student", "teacher"):
            for kind in "pm":
                shift = np.where(own.random(4 * patients) < right, 0, own.integers(1, grades, 4 * patients))
                given = (columns["grade"] + shift) % grades
                values = np.eye(grades)[given] * 0.7 + own.dirichlet(np.ones(grades), 4 * patients) * 0.3
                columns |= {f"{network}_{kind}{grade}": values[:, grade] for grade in range(grades)}
            columns[f"{network}_iou"] = np.clip(own.normal(iou, 0.1, 4 * patients), 0, 1)
        run = Run(row, fraction, seed)
        about = {"name": run_name(study, run), **run._asdict(), "data": {}, "config": {}, "checkpoint": "last"}
        about |= {"commit": "0123456789ab", "changed_files": False, "steps": 5, "checkpoint_step": 5}
        return Stored(about, pd.DataFrame(columns).round(4))

    return build


@pytest.fixture
def results(made_up: Made) -> Results:
    """DC-MT is nearly always right, supervised training half the time, the mean teacher as often; three seeds."""
    rights = {"supervised": 0.5, "mean_teacher": 0.5, "dcmt": 0.97}
    runs = {
        Run(row, 0.1, seed): made_up(row, 0.1, seed, right=right, iou=0.8 if row == "dcmt" else 0.1)
        for row, right in rights.items()
        for seed in (1, 2, 3)
    }
    return Results(PHANTOM, runs, samples=200)
