"""What the flip losses of CLIP-KOA do: the same small towers with and without them, on the radiographs, several seeds.

    python -m experiments.clip_flip --seeds 0 1 2 --jobs 2

Trains what is missing (an interrupted run is resumed), predicts the test images and their horizontal flips, prints accuracy
and flip disagreement of student and teacher, and writes docs/results/clip_flip.{csv,md}. With other seeds, configs or options
the tables go to RUNS/clip_flip unless --out is given, and runs with options have a hash of them in their name. Intervals are of
the mean over the seeds, by bootstrap over patients; differences are paired: the same draws of patients for both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcmt.cli import main as dcmt
from dcmt.trained.loaded import grade_rows, load_data, load_run
from experiments.side_by_side import Work, side_by_side
from knee.evaluation.intervals import intervals
from knee.evaluation.predictions import Predictions
from knee.metrics import quadratic_kappa, weighted_mean

ROOT = Path(__file__).parent.parent
SEEDS, CONFIGS = [0, 1, 2], ["clip_small", "clip_koa_small"]
METRICS = ("accuracy", "adjacent", "flip_changed", "flip_divergence")
Found = dict[tuple[str, str, int], Predictions]


def main() -> None:
    """Train what is missing, grade the test images, write the table."""
    options = _options()
    arms: list[str] = options.configs
    jobs = {f"{arm}-s{seed}": (arm, seed) for seed in options.seeds for arm in arms}
    logs = options.runs / "logs"
    side_by_side(
        [Work(name, logs / f"{name}.log", train, (options.runs, *job, options.options)) for name, job in jobs.items()],
        options.jobs,
    )
    found: Found = {}
    for arm, seed in jobs.values():
        loaded = load_run(folder(options.runs, arm, seed, options.options), checkpoint="best", device="auto")
        data = load_data(loaded)
        rows = data.rows("test")
        rows = rows[data.grades[rows] >= 0]
        for name, one in grade_rows(loaded, data, rows, flip=True).items():
            found[arm, name, seed] = one
    table = tabulate(found, data.grades[rows], data.patients.iloc[rows].tolist(), arms, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "clip_flip.csv", index=False, float_format="%.6f")
    text = markdown(table, len(rows), options)
    (options.out / "clip_flip.md").write_text(text, encoding="utf-8")
    print(text)


def train(runs: Path, arm: str, seed: int, more: Sequence[str]) -> None:
    """One run: started, or resumed where its folder exists. Raises RuntimeError."""
    path = folder(runs, arm, seed, more)
    if path.exists():
        arguments = ["train", "--resume", str(path)]
    else:
        arguments = ["train", f"--config={ROOT / 'configs' / arm}.yaml", f"--runs={runs}", f"--name={path.name}"]
        arguments += [f"--fit.seed={seed}", "--fit.threads=1", *more]
    if dcmt(arguments):
        raise RuntimeError(f"{path.name}: training failed")


def folder(runs: Path, arm: str, seed: int, more: Sequence[str]) -> Path:
    """The run's folder: with other options another one."""
    options = f"-{hashlib.sha256(json.dumps(list(more)).encode()).hexdigest()[:8]}" if more else ""
    return runs / f"flip-{arm}-s{seed}{options}"


def tabulate(
    found: Found, grades: NDArray[np.int64], patients: list[str], arms: list[str], seeds: list[int]
) -> pd.DataFrame:
    """One row per network, arm (or difference) and metric: each seed, their mean, and the interval of the mean."""
    lines = []
    for network in ("student", "teacher"):
        cases = {arm: [_per_case(found[arm, network, seed], grades) for seed in seeds] for arm in arms}
        for metric in METRICS:
            values = {arm: np.stack([case[metric] for case in cases[arm]]) for arm in arms}
            values |= {f"{arm} − {arms[0]}": values[arm] - values[arms[0]] for arm in arms[1:]}
            for name, each in values.items():
                low, high = _interval(each.mean(axis=0), patients)
                by_seed = dict(zip((f"seed_{seed}" for seed in seeds), each.mean(axis=1), strict=True))
                lines.append(
                    {"network": network, "run": name, "metric": metric, "mean": each.mean(), "low": low, "high": high}
                    | by_seed
                )
        for arm in arms:
            kappas = [quadratic_kappa(grades, found[arm, network, seed].predicted) for seed in seeds]
            by_seed = dict(zip((f"seed_{seed}" for seed in seeds), kappas, strict=True))
            lines.append({"network": network, "run": arm, "metric": "kappa", "mean": float(np.mean(kappas))} | by_seed)
    return pd.DataFrame(lines)


def _per_case(one: Predictions, grades: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    assert one.flip_changed is not None
    assert one.flip_divergence is not None
    return {
        "accuracy": (one.predicted == grades).astype(np.float64),
        "adjacent": (np.abs(one.predicted - grades) <= 1).astype(np.float64),
        "flip_changed": one.flip_changed.astype(np.float64),
        "flip_divergence": one.flip_divergence,
    }


def _interval(values: NDArray[np.float64], patients: list[str]) -> tuple[float, float]:
    return intervals(lambda weights: {"mean": weighted_mean(values, weights)}, patients, seed=0)["mean"]


def markdown(table: pd.DataFrame, images: int, options: argparse.Namespace) -> str:
    """The table for people."""
    seeds = [column for column in table.columns if column.startswith("seed_")]
    lines = [
        f"{images} test images, seeds {', '.join(map(str, options.seeds))}; mean over the seeds with its 95 % interval "
        "(bootstrap over patients), then each seed.",
        "",
        "| network | run | metric | mean | 95 % interval | " + " | ".join(seeds) + " |",
        "|---|---|---|---|---|" + "---|" * len(seeds),
    ]
    for row in table.to_dict("records"):
        spread = "" if pd.isna(row["low"]) else f"{row['low']:.4f} to {row['high']:.4f}"
        each = " | ".join(f"{row[seed]:.4f}" for seed in seeds)
        lines.append(f"| {row['network']} | {row['run']} | {row['metric']} | {row['mean']:.4f} | {spread} | {each} |")
    return "\n".join(lines) + "\n"


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="the others are compared with the first")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, help="default: docs/results; RUNS/clip_flip for other options")
    known, rest = parser.parse_known_args(arguments)
    known.options = rest  # for every run, such as --fit.epochs 2 --data.workers 1
    study = not rest and (known.seeds, known.configs) == (SEEDS, CONFIGS)
    known.out = known.out or (ROOT / "docs" / "results" if study else known.runs / "clip_flip")
    return known


if __name__ == "__main__":
    main()
