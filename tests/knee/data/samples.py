"""Manifests that tests of splits share."""

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from knee.data.manifest import Manifest
from knee.grades import load_grade_set

KL = load_grade_set("kl")


def as_manifest(patients, grades, **columns) -> Manifest:
    count = len(patients)
    table = pd.DataFrame(
        {"image": [f"d/{i}.png" for i in range(count)], "patient": [str(p) for p in patients], **columns}
    )
    table["grade"] = pd.array(list(grades), dtype="Int64")
    table["line"] = np.arange(count) + 2
    return Manifest(Path("manifest.csv"), table)


tables = st.lists(st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 4))), min_size=1, max_size=120).map(
    lambda rows: as_manifest([p for p, _ in rows], [g for _, g in rows])
)
