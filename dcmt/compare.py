"""``dcmt compare``: two runs on the same cases, metric by metric, with paired intervals."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcmt.apply import LoadedRun, grade_rows, load_data, load_run
from dcmt.checkpoint import write_json
from dcmt.summary import metric_table
from knee.errors import UserError
from knee.evaluate import difference, report
from knee.figures import confusion_figure, save_figure

Say = Callable[[str], None]
DIFFERENCE = "second − first"
_SAME = {"manifest_sha256": "manifest", "split_sha256": "split"}


def compare_command(options: argparse.Namespace, *, say: Say) -> int:
    """Print the metrics side by side; with ``--out`` keep them as JSON and both confusion matrices as one figure."""
    titles = run_titles(*options.runs)
    first, second = (load_run(path, checkpoint=options.checkpoint, device=options.device) for path in options.runs)
    check_comparable(first, second)
    values = compare(first, second, titles, split=options.split, network=options.network, flip=options.flip)
    columns = {title: values[title]["metrics"] for title in titles} | {DIFFERENCE: values["difference"]}
    grades = values[titles[0]]["grades"]
    say(
        f"{options.network} of both, {values[titles[0]]['graded']} graded {options.split} images of "
        f"{values[titles[0]]['patients']} patients; 95% intervals, bootstrap over patients, the same draws for both"
    )
    for line in metric_table(columns):
        say(line)
    say("F1 by grade: " + ", ".join(f"{grade} {name}" for grade, name in enumerate(grades)))
    for line in metric_table(columns, names=[f"f1_{grade}" for grade in range(len(grades))])[1:]:
        say(line)
    if options.out:
        write_json(options.out / "comparison.json", values)
        confusions = {title: values[title]["confusion"] for title in titles}
        save_figure(confusion_figure(confusions, grades), options.out / "confusion.png")
        say(f"metrics: {options.out / 'comparison.json'}   figure: {options.out / 'confusion.png'}")
    return 0


def check_comparable(first: LoadedRun, second: LoadedRun) -> None:
    """Raises UserError where the two runs are of different data: the same cases cannot be told then."""
    paths = f"{first.run.path} and {second.run.path}"
    if first.grade_set != second.grade_set:
        raise UserError(
            f"{paths} grade by different sets ({first.grade_set.name}, {second.grade_set.name}); they cannot be compared"
        )
    for key, name in _SAME.items():
        if first.checkpoint.state.get(key) != second.checkpoint.state.get(key):
            raise UserError(f"{paths} are of different {name} files; train both on one {name} to compare them")


def run_titles(first: Path, second: Path) -> tuple[str, str]:
    """What to call the two: the names of their folders, or the whole paths where those are alike.

    >>> run_titles(Path("runs/a"), Path("runs/b")), run_titles(Path("x/a"), Path("y/a"))
    (('a', 'b'), ('x/a', 'y/a'))
    """
    if first.resolve() == second.resolve():
        raise UserError(f"{first} is given twice; name two runs")
    return (first.name, second.name) if first.name != second.name else (str(first), str(second))


def compare(
    first: LoadedRun, second: LoadedRun, titles: tuple[str, str], *, split: str, network: str, flip: bool
) -> dict[str, Any]:
    """Both reports under their titles, and ``difference``: the second minus the first with paired intervals."""
    for loaded in (first, second):
        if network not in loaded.networks:
            raise UserError(f"{loaded.run.path} has no {network}; compare the teachers")
    data = load_data(first)
    others = load_data(second)
    rows = data.rows(split)
    if not len(rows):
        raise UserError(f"the split has no {split} images; compare on another by --split")
    if not data.manifest.table["image"].equals(others.manifest.table["image"]):
        raise UserError("the two runs left out different unreadable images (data.skip_bad); repair the files first")
    grades, patients = data.manifest.table["grade"].iloc[rows], data.patients.iloc[rows]
    found = [
        grade_rows(loaded, images, rows, flip=flip, names=[network])[network]
        for loaded, images in ((first, data), (second, others))
    ]
    samples = first.config.report.bootstrap
    values: dict[str, Any] = {"split": split, "network": network, "first": titles[0], "second": titles[1]}
    for title, one in zip(titles, found, strict=True):
        values[title] = report(one, grades, patients, data.grade_set, samples=samples)
    values["difference"] = difference(found[0], found[1], grades, patients, data.grade_set, samples=samples)
    return values
