"""The review loop on the phantom: do the cases that the model doubts most help it more than as many random cases?

    python -m experiments.review_circle --folder runs/circle --seeds 0 1 2 --data data/phantom --jobs 2

For each seed a model is trained on few labels, some of them wrong. A simulated reader, who knows the true grades, then
grades unlabeled cases and checks training labels: those that the model doubts most, or as many chosen at random. The
next model is trained on each of the two manifests, all else equal, and both are evaluated on the test split. Every step
uses the commands that a person would use. Finished steps are skipped, so the program may be stopped and restarted;
``--jobs`` runs of one thread each are trained side by side, and their output is in FOLDER/logs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcmt.cli import main as dcmt
from dcmt.commands.review.files import key_path, model_hash, run_name
from dcmt.trained.loaded import grade_rows, load_data, load_run
from experiments.side_by_side import Work, side_by_side
from knee.data.cases import load_salt
from knee.data.manifest import read_manifest, write_manifest
from knee.data.splits import make_split, write_split
from knee.engine.run import RunFolder
from knee.evaluation.intervals import intervals
from knee.grades import load_grade_set
from knee.metrics import confusion_metrics, weighted_confusion
from knee.phantom import write_phantom
from knee.review.key import KeyedCase, read_key
from knee.review.verdicts_file import Verdict, verdicts_document

ROOT = Path(__file__).parent.parent
ARMS = ("random", "doubted")
GRADES = load_grade_set("cartilage")
TIME = "2025-01-01T00:00:00Z"
Floats = NDArray[np.float64]


class Start(NamedTuple):
    """What the first model of a seed is trained on: few labels, some of them wrong."""

    seed: int
    manifest: Path
    split: Path
    labeled: int
    wrong: frozenset[str]
    """Images with a wrong label."""


class Graded(NamedTuple):
    """The teacher's predictions on the test split, arrays (N,), and how many wrong labels the reader corrected before."""

    predicted: NDArray[np.int64]
    grades: NDArray[np.int64]
    patients: NDArray[Any]
    corrected: int = 0


Results = Sequence[Mapping[str, Graded]]  # for each seed: "start" and each arm


def main() -> None:
    """Do the missing steps for every seed and write the table."""
    options = parse()
    keep_options(options)
    base = data_manifest(options)
    truth = read_truth(base.parent / "truth.csv")
    load_salt(base)  # once, before several processes need it
    starts = {seed: make_start(options, base, truth, seed) for seed in options.seeds}

    def work(start: Start, arm: str) -> Work:
        name = f"s{start.seed}_{arm}"
        return Work(name, options.folder / "logs" / f"{name}.log", run_arm, (options, start, arm, truth))

    def then(done: Work, _: Graded) -> list[Work]:
        _, start, arm, _ = done.arguments
        return [work(start, other) for other in ARMS] if arm == "start" else []

    found = side_by_side([work(start, "start") for start in starts.values()], options.jobs, then)
    results = [{arm: found[f"s{seed}_{arm}"] for arm in ("start", *ARMS)} for seed in starts]
    text = table(options, list(starts.values()), results)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")


def run_arm(options: argparse.Namespace, start: Start, arm: str, truth: dict[str, int]) -> Graded:
    """Review the first model unless this is the first, train on the resulting manifest, and evaluate on the test split."""
    manifest = start.manifest if arm == "start" else review(options, start, arm, truth)
    loaded = load_run(train(options, start, arm, manifest), checkpoint="best", device="auto")
    data = load_data(loaded)
    rows = data.rows("test")
    predicted = grade_rows(loaded, data, rows, names=["teacher"])["teacher"].predicted
    labels = pd.read_csv(manifest).set_index("image")["grade"]
    corrected = sum(int(labels[image]) == truth[image] for image in start.wrong)
    return Graded(predicted, data.grades[rows], data.patients.iloc[rows].to_numpy(), corrected)


def keep_options(options: argparse.Namespace) -> None:
    """Refuse other options than those of the folder's runs, which would be mixed. Raises SystemExit."""
    given = {name: str(value) for name, value in vars(options).items() if name not in ("seeds", "jobs", "out")}
    path = options.folder / "options.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != given:
        raise SystemExit(f"{options.folder} was started with other options ({path}); give another --folder")
    options.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The options; what follows --train is for train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="run folders, and the phantom unless --data is given")
    add("--data", type=Path, help="a phantom's folder, best with manifest_masks.csv; manifests are added")
    add("--patients", type=int, default=290, help="of a phantom that is drawn here")
    add("--size", type=int, default=96)
    add("--config", type=Path, action="append", help="default: configs/phantom.yaml; may be repeated")
    add("--fraction", type=float, default=0.1, help="of the training patients whose labels are known")
    add("--wrong", type=float, default=0.1, help="share of these labels that are wrong")
    add("--cases", type=int, default=80, help="unlabeled cases that the reader grades")
    add("--again", type=int, default=20, help="training labels that the reader checks")
    add("--by", default="all", help="how doubted unlabeled cases are ranked")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--jobs", type=int, default=1, help="runs side by side, one thread each")
    add("--out", type=Path, default=ROOT / "docs" / "results" / "review_circle.md")
    add("--train", nargs=argparse.REMAINDER, default=[], help="everything after this goes to train.py")
    return parser.parse_args()


def data_manifest(options: argparse.Namespace) -> Path:
    """The phantom's manifest, with the segmenter's masks where there are any."""
    folder: Path = options.data or options.folder / "data"
    if not (folder / "manifest.csv").exists():
        # The manifest is written last: without it an earlier attempt was killed.
        write_phantom(folder, patients=options.patients, size=options.size, seed=0, force=not options.data)
    with_masks = folder / "manifest_masks.csv"
    return with_masks if with_masks.exists() else folder / "manifest.csv"


def read_truth(path: Path) -> dict[str, int]:
    """The drawn grade of each image."""
    frame = pd.read_csv(path)
    return dict(zip(frame["image"], frame["grade"].astype(int), strict=True))


def make_start(options: argparse.Namespace, base: Path, truth: dict[str, int], seed: int) -> Start:
    """Write a manifest in which the other training images have no grade and some labels are wrong."""
    table = read_manifest(base, GRADES).table
    split = make_split(table, seed=seed)
    in_training = (split["split"] == "train").to_numpy()
    known = in_training & (split["rank"] < options.fraction).to_numpy()
    grades = [truth[image] for image in table["image"]]
    rng = np.random.default_rng([seed, 1])
    wrong = rng.choice(np.flatnonzero(known), round(options.wrong * known.sum()), replace=False)
    for row in wrong.tolist():
        grades[row] = rng.choice([grade for grade in range(GRADES.count) if grade != grades[row]])
    hidden = in_training & ~known
    table = table.assign(grade=pd.Series(grades, table.index, dtype="Int64").mask(hidden))
    # Experiments in folders of the same name may share their data.
    place = hashlib.sha256(str(options.folder.resolve()).encode()).hexdigest()[:8]
    path = base.with_name(f"circle_{options.folder.name}_{place}_s{seed}_start.csv")
    split_path = options.folder / f"split_s{seed}.csv"
    write_manifest(path, table, force=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    write_split(split_path, split, force=True)
    return Start(seed, path, split_path, int(known.sum()), frozenset(table["image"].iloc[wrong]))


def train(options: argparse.Namespace, start: Start, arm: str, manifest: Path) -> Path:
    """The folder of a run on a manifest, trained or resumed."""
    path: Path = options.folder / f"s{start.seed}_{arm}"
    if path.exists():
        run("train", "--resume", path)
        return path
    configs = [f"--config={config}" for config in options.config or [ROOT / "configs" / "phantom.yaml"]]
    data = [f"--data.manifest={manifest}", f"--data.split={start.split}", "--data.labeled_fraction=1"]
    data += [f"--data.grade_set={GRADES.name}", f"--data.image_size={options.size}"]
    fit = [f"--fit.seed={start.seed}", "--fit.threads=1", f"--runs={options.folder}", f"--name={path.name}"]
    run("train", *configs, *data, *fit, *options.train)
    return path


def run(*arguments: object) -> None:
    """Run a ``dcmt`` command. Raises RuntimeError where it fails."""
    if code := dcmt([str(one) for one in arguments]):
        raise RuntimeError(f"dcmt {arguments[0]} ended with code {code}")


def review(options: argparse.Namespace, start: Start, arm: str, truth: dict[str, int]) -> Path:
    """The next manifest: review of the first model by export, simulated reading, import and labels."""
    out = start.manifest.with_name(start.manifest.name.replace("_start", f"_{arm}"))
    reviewed = options.folder / "read" / f"s{start.seed}_{arm}"
    # A manifest that a run was trained on must not change; any other may come from a review that was killed.
    if not out.exists() or not (options.folder / f"s{start.seed}_{arm}").exists():
        shutil.rmtree(reviewed, ignore_errors=True)
        shutil.copytree(options.folder / f"s{start.seed}_start", reviewed)
        verdicts = reviewed / "verdicts.json"
        verdicts.write_text(json.dumps(read_cases(reviewed, choose(options, reviewed, arm, start.seed), truth)))
        run("review", "import", reviewed, verdicts)
        run("review", "labels", reviewed, "--out", out, "--force")
    return out


def choose(options: argparse.Namespace, reviewed: Path, arm: str, seed: int) -> list[KeyedCase]:
    """The reader's cases: unlabeled ones to grade, and training labels to check."""
    chosen: list[KeyedCase] = []
    for split, count, by in (("unlabeled", options.cases, options.by), ("train", options.again, "mismatch")):
        if not count:
            continue
        ranked = ["--cases", count, "--by", by] if arm == "doubted" else []
        run("review", "export", reviewed, "--split", split, *ranked)
        found = [keyed for keyed in read_key(key_path(RunFolder(reviewed))).values() if keyed.split == split]
        # Sorted by image: names of cases depend on a salt, which differs between data folders.
        found.sort(key=lambda keyed: keyed.image)
        rng = np.random.default_rng([seed, 2])
        chosen += [found[place] for place in rng.permutation(len(found))[:count]]
    return chosen


def read_cases(reviewed: Path, cases: Sequence[KeyedCase], truth: dict[str, int]) -> dict[str, Any]:
    """What the review page would save for a reader who knows the truth."""
    loaded = load_run(reviewed, checkpoint="best", device="cpu")
    model, name = model_hash(loaded.checkpoint), run_name(loaded.run)
    verdicts = []
    for keyed in cases:
        grade = truth[keyed.image]
        agrees = "agree" if grade == keyed.teacher_grade else "disagree"
        verdicts.append(Verdict(keyed.case, "simulated", TIME, name, model, grade, grade, agrees, ""))
    return verdicts_document(verdicts, grade_set=GRADES.name, grades=GRADES.count)


def macro_f1(found: Graded, weights: Floats, count: int) -> Floats:
    """(S,) under weights (S, N)."""
    confusion = weighted_confusion(found.grades, found.predicted, weights, count=count)
    return confusion_metrics(confusion)["macro_f1"]


def gain(results: Results, count: int) -> tuple[float, float, float]:
    """Doubted minus random macro F1, mean over seeds, with its paired 95 % interval over test patients."""

    def statistics(weights: Floats) -> dict[str, Floats]:
        each = [macro_f1(one["doubted"], weights, count) - macro_f1(one["random"], weights, count) for one in results]
        return {"gain": np.mean(each, axis=0)}

    patients = results[0]["random"].patients
    low, high = intervals(statistics, patients, samples=2000, seed=0)["gain"]
    return float(statistics(np.ones((1, len(patients))))["gain"][0]), low, high


def table(options: argparse.Namespace, starts: Sequence[Start], results: Results) -> str:
    """The report, as Markdown."""
    patients = results[0]["start"].patients
    lines = [
        "# The review loop on the phantom",
        "",
        f"Macro F1 of the teacher on {len(patients)} test images of {len(set(patients))} patients. A simulated reader, who "
        f"knows the true grades, graded {options.cases} unlabeled cases and checked {options.again} training labels: chosen "
        f"at random, or those that the model doubts most (unlabeled by `{options.by}`, labels by `mismatch`). "
        "Gain: doubted minus random, paired 95 % interval by bootstrap over the test patients.",
        "",
        "| seed | labels | wrong | start | random | doubted | gain | wrong labels corrected: random | doubted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for start, one in zip(starts, results, strict=True):
        scores = [macro_f1(one[arm], np.ones((1, len(patients))), GRADES.count)[0] for arm in ("start", *ARMS)]
        cells = [start.seed, start.labeled, len(start.wrong), *(f"{score:.3f}" for score in scores)]
        cells += [shown(gain([one], GRADES.count)), *(one[arm].corrected for arm in ARMS)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if len(results) > 1:
        lines.append(f"| mean | | | | | | {shown(gain(results, GRADES.count))} | | |")
    named = [f"--{name} {getattr(options, name)}" for name in ("fraction", "wrong", "cases", "again", "by")]
    named += ["--seeds", *map(str, options.seeds), *(["--train", *options.train] if options.train else [])]
    return "\n".join([*lines, "", f"`python -m experiments.review_circle {' '.join(named)}`", ""])


def shown(values: tuple[float, float, float]) -> str:
    """A difference with its interval.

    >>> shown((0.1, -0.02, 0.3))
    '+0.100 [-0.020, +0.300]'
    """
    value, low, high = values
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
