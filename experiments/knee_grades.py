"""Grade knees from their slices: trained slice by slice, or as knees (docs/results.md, "A knee from its slices").

dcmt phantom data/phantom_knees --patients 580 --seed 3 --drawn-masks 3200
python -m experiments.knee_grades manifest data/phantom_knees      a knee has the highest grade of its slices
dcmt split data/phantom_knees/knees.csv --out data_splits/knees.csv
python train.py --config configs/phantom.yaml --config configs/rows/supervised.yaml … (docs/log.md)
python -m experiments.knee_grades compare runs/SLICES runs/KNEES   paired, on the test split
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dcmt.loaded import LoadedRun, grade_rows, load_data, load_run
from knee.data.prepare import KneeData
from knee.evaluation.by_knee import knee_predictions
from knee.evaluation.predictions import Predictions
from knee.evaluation.report import difference, report
from knee.evaluation.summary import metric_table

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "mae")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``knees.csv``, or print the comparison of two runs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.knee_grades", allow_abbrev=False)
    parser.add_argument("what", choices=("manifest", "compare"))
    parser.add_argument("paths", type=Path, nargs="+", help="the phantom's folder; or a run of slices and one of knees")
    options = parser.parse_args(arguments)
    if options.what == "manifest":
        write_manifest(options.paths[0])
    else:
        compare(*options.paths)
    return 0


def write_manifest(folder: Path) -> None:
    """``knees.csv``: each patient's slices are a series, whose grade is that of the worst of them."""
    table = pd.read_csv(folder / "manifest.csv", dtype={"patient": str})
    table["grade"] = table.groupby("patient")["grade"].transform("max")
    table.assign(series=table["patient"]).to_csv(folder / "knees.csv", index=False)
    print(folder / "knees.csv")


def compare(of_slices: Path, of_knees: Path) -> None:
    """Three ways to grade the test knees, with intervals over patients, and the paired differences from the first."""
    found: dict[str, Predictions] = {}
    for path, ways in ((of_slices, ("mean", "severest")), (of_knees, ("severest",))):
        run = load_run(path, checkpoint="best", device="cpu")
        data = load_data(run)
        slices, series = _slices(run, data)
        for way in ways:
            name = f"{'knees' if run.grades_knees else 'slices'}, {way}"
            found[name] = knee_predictions(slices, series, severest=way == "severest")
    rows = next(iter(found.values())).rows
    of_test = data.manifest.table["grade"].iloc[rows], data.patients.iloc[rows], data.grade_set
    reports = {name: report(one, *of_test)["metrics"] for name, one in found.items()}
    (first, reference), *others = found.items()
    differences = {f"{name} minus {first}": difference(reference, one, *of_test) for name, one in others}
    print("\n".join([*metric_table(reports, names=SHOWN), *metric_table(differences, names=SHOWN)]))


def _slices(run: LoadedRun, data: KneeData) -> tuple[Predictions, list[str]]:
    rows = data.rows("test")
    return grade_rows(run, data, rows, names=("teacher",))["teacher"], data.series(rows)


if __name__ == "__main__":
    sys.exit(main())
