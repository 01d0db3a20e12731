"""The whole circle on the phantom: are cases that the model doubts worth more to it than as many random ones?

    python -m experiments.review_circle --folder runs/circle --seeds 0 1 2 --data data/phantom --jobs 2

For each seed: a model is trained on few labels, some of them wrong. A simulated reader, who knows the drawn truth, then
grades unlabeled cases and reads training labels again: those that the model doubts most, or as many drawn at random.
The next model is trained on each of the two manifests, all else equal, and both are graded on the test split. All of
it by the same commands that a person would use. What is done already is not done again, so it may be killed and
restarted; each run has one thread, ``--jobs`` of them go side by side, and what they print is in FOLDER/logs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from dcmt.cli import main as dcmt
from dcmt.commands.review.files import key_path, model_hash, run_name
from dcmt.loaded import grade_rows, load_data, load_run
from experiments.side_by_side import Work, side_by_side
from knee.data.cases import load_salt
from knee.data.manifest import read_manifest, write_manifest
from knee.data.splits import make_split, write_split
from knee.engine.run import RunFolder
from knee.evaluation.intervals import intervals
from knee.grades import GradeSet, load_grade_set
from knee.metrics import confusion_metrics, weighted_confusion
from knee.phantom import write_phantom
from knee.review.key import KeyedCase, read_key
from knee.review.verdicts_file import Verdict, verdicts_document

ROOT = Path(__file__).parent.parent
ARMS = ("random", "doubted")
TIME = "2025-01-01T00:00:00Z"


@dataclass(frozen=True)
class Start:
    """Where one seed starts from: few labels, some wrong."""

    manifest: Path
    split: Path
    labeled: int
    planted: frozenset[str]
    """Images whose label is wrong."""


def main() -> None:
    """Run what is missing of the circle for every seed, write the table."""
    options = parse()
    keep_options(options)
    base = data_manifest(options)
    grade_set = load_grade_set(options.grade_set)
    truth = read_truth(base.parent / "truth.csv")
    load_salt(base)  # once, before processes side by side ask for it
    starts = {seed: make_start(options, base, grade_set, truth, seed) for seed in options.seeds}

    def work(seed: int, name: str) -> Work:
        call, arguments = (first_run, ()) if name == "start" else (next_run, (name, truth))
        log = options.folder / "logs" / f"s{seed}_{name}.log"
        return Work((seed, name), log, call, (options, starts[seed], seed, *arguments))

    def then(done: Work, _: Any) -> Iterator[Work]:
        seed, name = cast("tuple[int, str]", done.name)
        if name == "start":
            yield from (work(seed, arm) for arm in ARMS)

    outcomes = side_by_side([work(seed, "start") for seed in options.seeds], options.jobs, then)
    results = []
    for seed, start in starts.items():
        found = {name: outcomes[seed, name][0] for name in ("start", *ARMS)}
        corrected = {arm: outcomes[seed, arm][1] for arm in ARMS}
        results.append({"seed": seed, "start": start, "found": found, "corrected": corrected})
    text = table(options, results, grade_set)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")


def first_run(options: argparse.Namespace, start: Start, seed: int) -> tuple[dict[str, Any], int]:
    """The model that is reviewed, graded on the test split."""
    return grade_test_split(train(options, f"s{seed}_start", start, start.manifest, seed)), 0


def next_run(
    options: argparse.Namespace, start: Start, seed: int, arm: str, truth: dict[str, int]
) -> tuple[dict[str, Any], int]:
    """Review of the first model and training on the next manifest; how many wrong labels are right in it."""
    manifest, corrected = review(options, options.folder / f"s{seed}_start", arm, start, truth, seed)
    return grade_test_split(train(options, f"s{seed}_{arm}", start, manifest, seed)), corrected


def keep_options(options: argparse.Namespace) -> None:
    """Runs that exist are gone on with: other options would be mixed with them. Raises SystemExit."""
    given = {name: str(value) for name, value in vars(options).items() if name not in ("seeds", "jobs", "out")}
    path = options.folder / "options.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != given:
        raise SystemExit(f"{options.folder} was begun with other options ({path}); give another --folder")
    options.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The options; what follows --train is for train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="where runs go, and the phantom unless --data is given"
    )
    parser.add_argument(
        "--data", type=Path, help="a phantom's folder, best with manifest_masks.csv; manifests are added"
    )
    parser.add_argument("--patients", type=int, default=290, help="of a phantom that is drawn here")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--grade-set", default="cartilage")
    parser.add_argument(
        "--config", type=Path, action="append", help="default: configs/phantom.yaml; may be given again"
    )
    parser.add_argument("--fraction", type=float, default=0.1, help="of the training patients whose labels are known")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of these labels that are wrong")
    parser.add_argument("--cases", type=int, default=80, help="unlabeled cases that the reader grades")
    parser.add_argument("--again", type=int, default=20, help="training labels that the reader reads again")
    parser.add_argument("--by", default="all", help="what doubted unlabeled cases are chosen by")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "review_circle.md")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="the rest goes to train.py")
    return parser.parse_args()


def data_manifest(options: argparse.Namespace) -> Path:
    """The phantom's manifest, with masks of the segmenter where there are some."""
    folder: Path = options.data or options.folder / "data"
    if not (folder / "manifest.csv").exists():
        # The manifest is written last: without it an earlier attempt was killed.
        write_phantom(folder, patients=options.patients, size=options.size, seed=0, force=not options.data)
    found = [folder / name for name in ("manifest_masks.csv", "manifest.csv") if (folder / name).exists()]
    return found[0]


def read_truth(path: Path) -> dict[str, int]:
    frame = pd.read_csv(path)
    return dict(zip(frame["image"], frame["grade"].astype(int), strict=True))


def make_start(options: argparse.Namespace, base: Path, grade_set: GradeSet, truth: dict[str, int], seed: int) -> Start:
    """A manifest whose other training images are truly without a grade, and some labels changed."""
    manifest = read_manifest(base, grade_set)
    split = make_split(manifest.table, seed=seed)
    frame = manifest.table.copy()
    train_rows = (split["split"] == "train").to_numpy()
    known = train_rows & (split["rank"] < options.fraction).to_numpy()
    frame["grade"] = pd.array(
        [None if hidden else truth[image] for hidden, image in zip(train_rows & ~known, frame["image"], strict=True)],
        dtype="Int64",
    )
    rng = np.random.default_rng([seed, 1])
    planted = rng.choice(np.flatnonzero(known), round(options.wrong * known.sum()), replace=False)
    for row in planted.tolist():
        others = [grade for grade in range(grade_set.count) if grade != truth[str(frame["image"].iat[row])]]
        frame.loc[row, "grade"] = rng.choice(others)
    # Circles in folders of one name may share their data.
    place = hashlib.sha256(str(options.folder.resolve()).encode()).hexdigest()[:8]
    path = base.with_name(f"circle_{options.folder.name}_{place}_s{seed}_start.csv")
    split_path = options.folder / f"split_s{seed}.csv"
    write_manifest(path, frame, force=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    write_split(split_path, split, force=True)
    return Start(path, split_path, int(known.sum()), frozenset(frame["image"].iloc[planted]))


def train(options: argparse.Namespace, name: str, start: Start, manifest: Path, seed: int) -> Path:
    """A run on a manifest, from the start or from where it was left."""
    path: Path = options.folder / name
    if path.exists():
        done(dcmt(["train", "--resume", str(path)]))
        return path
    given = [f"--config={config}" for config in options.config or [ROOT / "configs" / "phantom.yaml"]]
    given += [f"--data.manifest={manifest}", f"--data.split={start.split}", "--data.labeled_fraction=1"]
    given += [
        f"--data.grade_set={options.grade_set}",
        f"--data.image_size={options.size}",
        f"--fit.seed={seed}",
        "--fit.threads=1",
    ]
    done(dcmt(["train", *given, f"--runs={options.folder}", f"--name={name}", *options.train]))
    return path


def done(code: int) -> None:
    if code:
        raise RuntimeError(f"a command ended with code {code}")


def review(
    options: argparse.Namespace, first: Path, arm: str, start: Start, truth: dict[str, int], seed: int
) -> tuple[Path, int]:
    """Export, simulated reading, import, labels: the next manifest, and how many wrong labels are right in it."""
    out = start.manifest.with_name(start.manifest.name.replace("_start", f"_{arm}"))
    run = options.folder / "read" / f"s{seed}_{arm}"
    # A manifest that was trained on must stay as it is; any other may be of a review that was killed.
    if not out.exists() or not (options.folder / f"s{seed}_{arm}").exists():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(first, run)
        chosen = choose(options, run, arm, seed)
        verdicts = run / "verdicts.json"
        verdicts.write_text(json.dumps(reading(run, chosen, truth, options.grade_set)))
        done(dcmt(["review", "import", str(run), str(verdicts)]))
        done(dcmt(["review", "labels", str(run), "--out", str(out), "--force"]))
    frame = pd.read_csv(out)
    grades = dict(zip(frame["image"], frame["grade"], strict=True))
    return out, sum(int(grades[image]) == truth[image] for image in start.planted)


def choose(options: argparse.Namespace, run: Path, arm: str, seed: int) -> list[KeyedCase]:
    """The cases that the reader gets: unlabeled ones to grade, and training labels to read again."""
    chosen: list[KeyedCase] = []
    for split, count, by in (("unlabeled", options.cases, options.by), ("train", options.again, "mismatch")):
        doubted = ["--cases", str(count), "--by", by] if arm == "doubted" else []
        if not count:
            continue
        done(dcmt(["review", "export", str(run), "--split", split, *doubted]))
        found = [keyed for keyed in read_key(key_path(RunFolder(run))).values() if keyed.split == split]
        rng = np.random.default_rng([seed, 2])
        # Sorted by image: names of cases depend on a salt, which differs between data folders.
        found.sort(key=lambda keyed: keyed.image)
        chosen += [found[place] for place in rng.permutation(len(found))[:count]]
    return chosen


def reading(run: Path, cases: Sequence[KeyedCase], truth: dict[str, int], grade_set: str) -> dict[str, Any]:
    """What the page would save after a reader who knows the truth."""
    loaded = load_run(run, checkpoint="best", device="cpu")
    model, name = model_hash(loaded.checkpoint), run_name(loaded.run)
    verdicts = []
    for keyed in cases:
        grade = truth[keyed.image]
        agrees = "agree" if grade == keyed.teacher_grade else "disagree"
        verdicts.append(Verdict(keyed.case, "simulated", TIME, name, model, grade, grade, agrees, ""))
    return verdicts_document(verdicts, grade_set=loaded.grade_set.name, grades=loaded.grade_set.count)


def grade_test_split(run: Path) -> dict[str, Any]:
    """What the teacher says of the test split: arrays (N,)."""
    loaded = load_run(run, checkpoint="best", device="auto")
    data = load_data(loaded)
    rows = data.rows("test")
    predicted = grade_rows(loaded, data, rows, names=["teacher"])["teacher"].predicted
    return {"predicted": predicted, "grades": data.grades[rows], "patients": data.patients.iloc[rows].to_numpy()}


def macro_f1(found: dict[str, Any], weights: Any, count: int) -> Any:
    """(S,) under weights (S, N)."""
    confusion = weighted_confusion(found["grades"], found["predicted"], weights, count=count)
    return confusion_metrics(confusion)["macro_f1"]


def gain(results: Sequence[dict[str, Any]], count: int) -> tuple[float, float, float]:
    """Doubted minus random macro F1, mean over seeds, with its paired 95 % interval over test patients."""

    def statistics(weights: Any) -> dict[str, Any]:
        apart = [
            macro_f1(one["found"]["doubted"], weights, count) - macro_f1(one["found"]["random"], weights, count)
            for one in results
        ]
        return {"gain": np.mean(apart, axis=0)}

    found = results[0]["found"]["start"]
    low, high = intervals(statistics, found["patients"], samples=2000, seed=0)["gain"]
    return float(statistics(np.ones((1, len(found["grades"]))))["gain"][0]), low, high


def table(options: argparse.Namespace, results: Sequence[dict[str, Any]], grade_set: GradeSet) -> str:
    """The report, as Markdown."""
    found = results[0]["found"]["start"]
    ones, count = np.ones((1, len(found["grades"]))), grade_set.count
    lines = [
        "# The review circle on the phantom",
        "",
        f"Macro F1 of the teacher on {len(found['grades'])} test images of {len(set(found['patients']))} patients. The reader "
        f"(simulated, knows the drawn truth) graded {options.cases} unlabeled cases and read {options.again} training labels "
        f"again: drawn at random, or those that the model doubts most (unlabeled by `{options.by}`, labels by `mismatch`). "
        "Gain: doubted minus random, paired 95 % interval by bootstrap over the test patients.",
        "",
        "| seed | labels | wrong | start | random | doubted | gain | wrong labels mended: random | doubted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        start: Start = one["start"]
        values = {name: float(macro_f1(one["found"][name], ones, count)[0]) for name in ("start", *ARMS)}
        cells = [one["seed"], start.labeled, len(start.planted), *(f"{value:.3f}" for value in values.values())]
        cells += [interval(gain([one], count)), one["corrected"]["random"], one["corrected"]["doubted"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if len(results) > 1:
        lines.append(f"| mean | | | | | | {interval(gain(results, count))} | | |")
    command = f"`python -m experiments.review_circle {' '.join(shown(options))}`"
    return "\n".join([*lines, "", command, ""])


def interval(values: tuple[float, float, float]) -> str:
    value, low, high = values
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def shown(options: argparse.Namespace) -> list[str]:
    """The options that decide the numbers."""
    named = ("fraction", "wrong", "cases", "again", "by")
    given = [f"--{name} {getattr(options, name)}" for name in named]
    given.append("--seeds " + " ".join(map(str, options.seeds)))
    return [*given, *(["--train", *options.train] if options.train else [])]


if __name__ == "__main__":
    main()
