"""Made-up results: stored runs whose grades and probabilities come from a seed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # experiments are run from the repository, not installed

from experiments.results.store import Stored

Made = Callable[..., Stored]


@pytest.fixture
def made_up() -> Made:
    """A stored run: ``made_up("dcmt", 0.1, 1, right=0.8)``; ``right`` is how often the network grades right.

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
        about = {"name": f"phantom-{row}-f{fraction:g}-s{seed}", "row": row, "fraction": fraction, "seed": seed}
        about |= {"commit": "0123456789ab", "changed_files": False, "steps": 5, "test_images": 4 * patients}
        about |= {"config_hash": "c", "code_hash": "d", "seconds": 1.0, "checkpoint_step": 5}
        return Stored(about, pd.DataFrame(columns).round(4))

    return build
