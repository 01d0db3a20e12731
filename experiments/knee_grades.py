"""Grade knees from the slices of a phantom that a run has not seen: mean of the slices against the most severe ones.

    dcmt phantom data/fresh --patients 580 --seed 3
    python -m experiments.knee_grades runs/NAME data/fresh

A knee has the highest grade of its slices. Differences are paired, with intervals over patients (docs/log.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dcmt.trained.loaded import load_run
from knee.evaluation.by_knee import knee_grades, knee_predictions
from knee.evaluation.predictions import Predictions
from knee.evaluation.report import difference, report
from knee.evaluation.summary import Entry, cell, metric_table
from knee.grades import decide
from knee.io.files import write_text

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "mae", "ece")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both ways to grade a knee, and their difference."""
    parser = argparse.ArgumentParser(prog="python -m experiments.knee_grades", allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("phantom", type=Path, help="folder that dcmt phantom wrote")
    parser.add_argument("--out", type=Path, help="also write a page, such as docs/results/knees.md")
    options = parser.parse_args(arguments)
    run = load_run(options.run, checkpoint="best", device="auto")
    truth = pd.read_csv(options.phantom / "manifest.csv", dtype={"patient": str})
    table = run.predict([options.phantom / name for name in truth["image"]], grade_anyway=True)
    shares = table[[f"p_{grade}" for grade in range(run.grade_set.count)]].to_numpy(np.float32)
    zeros = np.zeros(len(shares))
    slices = Predictions(
        np.arange(len(shares)), shares, decide(shares, run.grade_set.decision), zeros, zeros, zeros > 0, zeros * np.nan
    )
    series = truth["patient"].tolist()
    knees = {
        way: knee_predictions(slices, series, severest=way == "severest", decision=run.grade_set.decision)
        for way in ("mean", "severest")
    }
    of_knees = knee_grades(truth["grade"].to_numpy(), series), truth["patient"].unique(), run.grade_set
    columns = {way: report(one, *of_knees)["metrics"] for way, one in knees.items()}
    columns["severest minus mean"] = difference(knees["mean"], knees["severest"], *of_knees)
    lines = metric_table(columns, names=SHOWN)
    print(f"{len(of_knees[0])} knees, {len(slices)} slices", *lines, sep="\n")
    if options.out:
        write_page(options.out, columns, knees=len(of_knees[0]), slices=len(slices))
    return 0


def write_page(path: Path, columns: Mapping[str, Mapping[str, Entry]], *, knees: int, slices: int) -> None:
    """The same as a page, for docs/results."""
    head = f"| | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}"
    rows = [f"| {name} | {' | '.join(cell(column.get(name)) for column in columns.values())} |" for name in SHOWN]
    about = (
        f"{knees} new phantom knees, {slices} slices, graded by a network trained on slices; intervals over patients."
    )
    text = "\n".join(["# A knee from its slices", "", about, "", head, *rows, ""])
    write_text(path, text, force=True)


if __name__ == "__main__":
    sys.exit(main())
