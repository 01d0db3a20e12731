"""What pairs of images and reports bring, on the phantom with reports: three studies, small enough for a CPU.

    python -m experiments.image_text draws      graders from 10 % of the grades, three draws of them
    python -m experiments.image_text ablation   LumbarCLIP's table: encoder, head and targets
    python -m experiments.image_text shuffled   retrieval where every report is of another image: it must be at chance

The tables go to docs/results/image_text_STUDY.md. Runs that are finished are not trained again; remove the folder of an
unfinished one. Options that the command does not know go to every training, and then the tables go to the work folder.
Everything runs in one process, one run after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcmt.cli import main as dcmt
from dcmt.trained.loaded import grade_rows, load_data, load_run
from knee.evaluation.intervals import intervals
from knee.grades import decide, load_grade_set
from knee.metrics import quadratic_kappa, weighted_metrics

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "results"
Floats = NDArray[np.float64]
ARMS = {
    "labels only": ("kl_xray", "rows/supervised"),
    "labels only, started from pairs": ("kl_xray", "rows/supervised"),
    "mean teacher": ("kl_xray", "rows/mean_teacher"),
    "joint, privileged teacher": ("beyond_clip",),
}
DIFFERENCES = (
    ("labels only, started from pairs", "labels only"),
    ("joint, privileged teacher", "mean teacher"),
)
ENCODERS = {
    "ResNet-10": ("resnet10t", 3, 16),
    "ViT-tiny": ("vit_tiny_patch16_224", -1, 0),
    "Swin-tiny, two stages": ("swin_tiny_patch4_window7_224", 1, 0),
}
METRICS = ("kappa", "accuracy")
PLAIN = ("patients", "test_patients", "size", "steps", "pair_steps", "draws")
VALIDATION = 20
"""Patients for validation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "image_text")
    parser.add_argument("--patients", type=int, default=400, help="for training")
    parser.add_argument("--test-patients", type=int, default=300, help="many, since all draws share them")
    parser.add_argument("--size", type=int, default=48, help="of the images, in pixels")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--pair-steps", type=int, default=400, help="of pairs in draws and shuffled")
    parser.add_argument("--draws", type=int, default=3, help="draws of the labeled patients")
    options, more = parser.parse_known_args(arguments)
    options.more = [*COMMON, f"--data.image_size={options.size}", *more]
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "data").exists():
        patients = options.patients + VALIDATION + options.test_patients
        _run("phantom", options.work / "data", "--kind=xray", "--reports", f"--patients={patients}",
             f"--size={options.size}")  # fmt: skip
        resplit(options.work / "data" / "manifest.csv", options.patients)
    text = STUDIES[options.study](options)
    plain = not more and all(getattr(options, name) == parser.get_default(name) for name in PLAIN)
    path = (OUT if plain else options.work) / f"image_text_{options.study}.md"
    path.write_text(text, encoding="utf-8")
    print(text, path, sep="\n")
    return 0


COMMON = (
    "--model.backbone=resnet10t", "--text.width=64", "--text.layers=1", "--fit.epochs=0", "--fit.threads=1",
    "--report.tensorboard=false",
)  # fmt: skip


def resplit(manifest: Path, train: int) -> None:
    """Split the phantom's independent patients by number: the first for training, ``VALIDATION``, and the rest to test."""
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    number = table["patient"].str[1:].astype(int)
    table["split"] = np.select([number < train, number < train + VALIDATION], ["train", "val"], "test")
    table.to_csv(manifest, index=False, lineterminator="\n")


def draws(options: argparse.Namespace) -> str:
    """Graders from 10 % of the grades: every arm on every draw."""
    found: dict[str, list[Floats]] = {arm: [] for arm in ARMS}
    for draw in range(options.draws):
        split = _split(options, draw)
        if draw == 0:
            train(options, "pairs", ["lumbarclip"], split, ["--data.labeled_per_batch=48"], steps=options.pair_steps)
        for number, (arm, configs) in enumerate(ARMS.items()):
            joint = configs == ("beyond_clip",)
            more = ["--data.labeled_fraction=0.1", f"--fit.seed={draw}"]
            if joint:
                more.append("--joint.layers=1")
            else:
                more += ["--model.normalise=image", "--data.labeled_per_batch=16", "--data.allow_missing_grades=true"]
                more.append("--optimizer.warmup_steps=10")  # of so short a run
                more += [] if "mean" not in arm else ["--data.unlabeled_per_batch=32"]
            if "started" in arm:
                more.append(f"--model.start={options.work / 'pairs'}")
            run = train(options, f"arm{number}-d{draw}", configs, split, more, steps=options.steps)
            probabilities, grades, patients = _test(run)
            found[arm].append(probabilities)
    return _draws_page(found, grades, patients, options)


def _test(run: Path) -> tuple[Floats, NDArray[np.int64], list[str]]:
    """The teacher's probabilities of the graded test images (of a supervised run: of its averaged network)."""
    loaded = load_run(run, checkpoint="last", device="auto")
    data = load_data(loaded)
    rows = data.rows("test")
    rows = rows[data.grades[rows] >= 0]
    one = grade_rows(loaded, data, rows, flip=False, names=["teacher"])["teacher"]
    return one.probabilities.astype(np.float64), data.grades[rows], data.patients.iloc[rows].tolist()


def _draws_page(
    found: Mapping[str, Sequence[Floats]], grades: NDArray[np.int64], patients: list[str], options: argparse.Namespace
) -> str:
    scale = load_grade_set("kl")

    def mean_of(arm: str) -> Callable[[Floats], dict[str, Floats]]:
        def statistics(weights: Floats) -> dict[str, Floats]:
            each = [
                weighted_metrics(one, decide(one, scale.decision), grades, weights, disease_from=scale.disease_from)
                for one in found[arm]
            ]
            return {name: np.mean([values[name] for values in each], axis=0) for name in METRICS}

        return statistics

    def gap(after: str, before: str) -> Callable[[Floats], dict[str, Floats]]:
        one, two = mean_of(after), mean_of(before)

        def statistics(weights: Floats) -> dict[str, Floats]:
            a, b = one(weights), two(weights)
            return {name: a[name] - b[name] for name in METRICS}

        return statistics

    rows = {arm: mean_of(arm) for arm in found}
    rows |= {f"{after} − {before}": gap(after, before) for after, before in DIFFERENCES}
    lines = [
        "# Grading from 10 % of the grades, with reports",
        "",
        f"{len(grades)} test films of {len(set(patients))} phantom patients, {options.patients} to train on, "
        f"{options.size} px; "
        f"mean over {options.draws} draws of the labeled patients, 95 % intervals by bootstrap over test patients, differences "
        f"paired; {options.steps} steps each, {options.pair_steps} of pairs; teacher, last checkpoint, median grade. "
        "`python -m experiments.image_text draws`.",
        "",
        "| | kappa | accuracy | kappa of each draw |",
        "|---|---|---|---|",
    ]
    for name, statistics in rows.items():
        values = statistics(np.ones((1, len(grades))))
        spread = intervals(statistics, patients, samples=2000, seed=0)
        cells = [f"{values[key][0]:.3f} [{spread[key][0]:.3f}, {spread[key][1]:.3f}]" for key in METRICS]
        each = [quadratic_kappa(grades, decide(one, scale.decision)) for one in found.get(name, ())]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(f'{value:.3f}' for value in each)} |")
    return "\n".join([*lines, ""])


def ablation(options: argparse.Namespace) -> str:
    """Encoder × head × targets: retrieval of the test pairs."""
    split = _split(options, 0)
    lines = [
        "# Encoder, head and targets of contrastive pre-training",
        "",
        f"{options.patients} phantom patients to train on, {options.size} px, random weights, {options.steps} steps of 32 "
        "pairs; soft: `contrast.targets self`, probably LumbarCLIP's. Exact recall in % on the test pairs, mean of both "
        "directions. One seed, so differences of a few per cent are noise. `python -m experiments.image_text ablation`.",
        "",
        "| Encoder | Head | Targets | R@1 | R@5 | R@10 | median rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, (backbone, stage, stride)), head, targets in itertools.product(
        ENCODERS.items(), ("linear", "nonlinear"), ("hard", "self")
    ):
        more = [f"--model.backbone={backbone}", f"--model.stage={stage}", f"--model.stride={stride}"]
        more += [f"--contrast.head={head}", f"--contrast.targets={targets}", "--data.labeled_per_batch=32"]
        run = train(options, f"{backbone}-{head}-{targets}", ["lumbarclip"], split, more, steps=options.steps)
        if not (run / "retrieval_test.json").is_file():
            _run("retrieve", run, "--split=test", "--checkpoint=last")
        found = json.loads((run / "retrieval_test.json").read_text())
        both = [found[direction]["exact"] for direction in ("image_to_report", "report_to_image")]
        recalls = [f"{100 * np.mean([one[f'recall_at_{k}'] for one in both]):.1f}" for k in (1, 5, 10)]
        kind = {"hard": "hard", "self": "soft"}[targets]
        lines.append(
            f"| {name} | {head} | {kind} | {' | '.join(recalls)} | {np.mean([one['median_rank'] for one in both]):g} |"
        )
    chance = [f"{100 * both[0]['chance'][f'recall_at_{k}']:.1f}" for k in (1, 5, 10)]
    return "\n".join([*lines, f"| chance | | | {' | '.join(chance)} | {(found['gallery'] + 1) / 2:g} |", ""])


def shuffled(options: argparse.Namespace) -> str:
    """Retrieval after training on reports permuted over all images. Raises RuntimeError above or below chance."""
    split = _split(options, 0)
    manifest = options.work / "data" / "shuffled.csv"
    if not manifest.exists():
        table = pd.read_csv(manifest.with_name("manifest.csv"), dtype=str, keep_default_na=False)
        table["report"] = np.random.default_rng(0).permutation(table["report"].to_numpy())
        table.to_csv(manifest, index=False, lineterminator="\n")
    batch = "--data.labeled_per_batch=48"
    run = train(options, "shuffled", ["lumbarclip"], split, [batch], steps=options.pair_steps, manifest=manifest.name)
    _run("retrieve", run, "--split=test", "--checkpoint=last")
    return shuffled_page(json.loads((run / "retrieval_test.json").read_text()), options)


def shuffled_page(found: Mapping[str, Any], options: argparse.Namespace) -> str:
    """The table of a run on shuffled reports. Raises RuntimeError if the interval of R@10 does not include chance."""
    lines = [
        "# Shuffled reports",
        "",
        f"{found['gallery']} test pairs of {found['patients']} phantom patients; every report is of another image, in "
        f"training, too ({options.pair_steps} steps of 48 pairs, {options.size} px). Exact recall in %, 95 % intervals by "
        "bootstrap over patients. `python -m experiments.image_text shuffled`.",
        "",
        "| | R@1 | R@5 | R@10 |",
        "|---|---|---|---|",
    ]
    outside = []
    for direction in ("image_to_report", "report_to_image"):
        one = found[direction]["exact"]
        cells = []
        for key in ("recall_at_1", "recall_at_5", "recall_at_10"):
            low, high = one["intervals"][key]
            cells.append(f"{100 * one[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            # At chance, R@1 finds one pair or none, of which a bootstrap gives no interval.
            if key == "recall_at_10" and not low <= one["chance"][key] <= high:
                outside.append(f"{direction} {key}: {one['chance'][key]:.4f} is not in [{low:.4f}, {high:.4f}]")
        lines.append(f"| {direction.replace('_', ' ')} | {' | '.join(cells)} |")
    if outside:
        raise RuntimeError("not at chance: " + "; ".join(outside))
    chance = [f"{100 * one['chance'][key]:.1f}" for key in ("recall_at_1", "recall_at_5", "recall_at_10")]
    return "\n".join([*lines, f"| chance | {' | '.join(chance)} |", ""])


STUDIES = {"draws": draws, "ablation": ablation, "shuffled": shuffled}


def train(
    options: argparse.Namespace,
    name: str,
    configs: Sequence[str],
    split: Path,
    more: Sequence[str],
    *,
    steps: int,
    manifest: str = "manifest.csv",
) -> Path:
    """A run of the work folder, trained unless it is there. Raises RuntimeError."""
    run: Path = options.work / name
    if not (run / "done").exists():
        files = [f"--config={ROOT / 'configs' / config}.yaml" for config in configs]
        text = "lumbarclip" in configs or "beyond_clip" in configs
        common = [one for one in options.more if text or not one.startswith("--text.")]
        _run("train", *files, *common, *more, f"--runs={options.work}", f"--name={name}", f"--fit.steps={steps}",
             f"--data.split={split}", f"--data.manifest={options.work / 'data' / manifest}",
             f"--fit.validate_every={steps}")  # fmt: skip
        (run / "done").touch()
    return run


def _split(options: argparse.Namespace, draw: int) -> Path:
    """The split file of a draw: the same images, other labeled patients."""
    path: Path = options.work / f"split-{draw}.csv"
    if not path.exists():
        _run("split", options.work / "data" / "manifest.csv", f"--out={path}", f"--seed={draw}")
    return path


def _run(*arguments: object) -> None:
    if dcmt([str(argument) for argument in arguments]):
        raise RuntimeError(f"dcmt {' '.join(map(str, arguments))}: failed")


if __name__ == "__main__":
    sys.exit(main())
