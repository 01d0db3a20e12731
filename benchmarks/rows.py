"""How time and memory grow with the number of images: manifest, check, split, cache, and the start of a training.

    python benchmarks/rows.py --skip check       # 10,000 and 100,000 rows; the check takes minutes, it looks for knees
    python benchmarks/rows.py --skip check --rows 10000 1000000

Tiny images in a temporary folder: twenty hard links to each picture, all of one patient. Each stage runs by itself in one
process, whose largest memory is measured stage by stage (Linux). The goals are printed next to what was found.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch

from knee.data.check import check_data
from knee.data.config import DataConfig
from knee.data.manifest import read_manifest, write_manifest
from knee.data.prepare import KneeData, TrainingBatches, describe, load_knee_data
from knee.data.splits import make_split, read_split, write_split
from knee.data.view_config import ViewConfig
from knee.engine.device import flush_denormals
from knee.engine.record import record_data, run_state
from knee.engine.run import RunFolder
from knee.grades import load_grade_set
from knee.intake.folders import manifest_from_folder

LINKS, SIDE = 20, 16
SPLIT_GOAL_S, START_GOAL_S, MEMORY_GOAL_MIB = 60.0, 20.0, 2048.0
STAGES = ("manifest", "read", "check", "split", "cache", "start", "sampler")


class Stage(NamedTuple):
    """What a stage took."""

    seconds: float
    processor: float
    """Seconds of the processor, which other work on the machine disturbs less."""
    mib: float
    """The largest memory of the process during it."""


def write_images(folder: Path, rows: int) -> pd.DataFrame:
    """``rows`` images below the folder, in one folder for each patient, and their manifest's table."""
    rng = np.random.default_rng(0)
    names, patients, grades = [], [], []
    first = folder
    for row in range(rows):
        patient, link = divmod(row, LINKS)
        name = f"{patient // 1000:03d}/p{patient:06d}/{chr(ord('a') + link)}_{'LR'[patient % 2]}.png"
        path = folder / name
        if link == 0:
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
            first = path
        else:
            os.link(first, path)
        names.append(name)
        patients.append(f"p{patient:06d}")
        grades.append(str(patient % 5) if patient % 3 else "")
    sides = ["LR"[int(patient[1:]) % 2] for patient in patients]
    return pd.DataFrame({"image": names, "patient": patients, "side": sides, "grade": grades, "mask": ""})


def measured(work: Callable[[], Any]) -> tuple[Any, Stage]:
    """The result of a call, with its time and the largest memory meanwhile."""
    status = Path("/proc/self/status")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
    started, processor = time.perf_counter(), time.process_time()
    found = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return found, Stage(seconds, processor, int(lines["VmHWM"].split()[0]) / 1024)
    unit = 1 if sys.platform == "darwin" else 1024
    return found, Stage(seconds, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def first_batch(data: KneeData, config: DataConfig) -> Any:
    """All that ``dcmt train`` does with the data before its first step."""
    describe(data, config)
    data.cache.mean_std(data.split.rows("train"))
    run_state(data, best_metric="val_teacher/kappa")
    run = RunFolder(Path(data.manifest.folder) / "run")
    run.local.mkdir(parents=True, exist_ok=True)
    record_data(run, data)
    batches = TrainingBatches(
        data,
        config,
        ViewConfig(),
        rows=data.labeled,
        unlabeled=data.unlabeled,
        dilation=config.mask_dilation,
        seed=0,
        device=torch.device("cpu"),
        channels_last=False,
    )
    endless = batches.from_batch(0)
    next(endless)
    return endless


def measure(folder: Path, rows: int, skipped: list[str]) -> dict[str, Stage]:
    """Every stage that is not skipped, on ``rows`` images in the folder."""
    grade_set = load_grade_set("kl")
    found: dict[str, Stage] = {}
    manifest, split = folder / "manifest.csv", folder / "split.csv"
    write_manifest(manifest, write_images(folder, rows))
    config = DataConfig(
        manifest=str(manifest), split=str(split), grade_set="kl", labeled_fraction=0.5, image_size=SIDE, labeled_per_batch=8,
        unlabeled_per_batch=8,
    )  # fmt: skip
    table = read_manifest(manifest, grade_set)
    write_split(split, make_split(table.table, seed=0))
    shared: dict[str, Any] = {}

    def start() -> None:
        shared["batches"] = first_batch(load_knee_data(config), config)

    work: dict[str, Callable[[], Any]] = {
        "manifest": lambda: manifest_from_folder(folder, "plain", pattern="folder", grade_count=grade_set.count),
        "read": lambda: read_split(split, read_manifest(manifest, grade_set)),
        "check": lambda: check_data(manifest, grade_set, progress=False),
        "split": lambda: write_split(split, make_split(read_manifest(manifest, grade_set).table, seed=0), force=True),
        "cache": lambda: load_knee_data(config),
        "start": start,
        "sampler": lambda: [next(shared["batches"]) for _ in range(20)],
    }
    assert tuple(work) == STAGES
    for name, one in work.items():
        if name in skipped:
            continue
        found[name] = measured(one)[1]
        one_stage = found[name]
        times = f"{one_stage.seconds:8.2f} s, {one_stage.processor:8.2f} s of the processor"
        print(f"{rows:>9,} rows  {name:<9} {times}, {one_stage.mib:7.0f} MiB", flush=True)
    return found


def main() -> None:
    """Print time and memory of every stage, how they grow, and whether the goals are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--skip", nargs="*", choices=STAGES[:3], default=[], help="stages to leave out")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    flush_denormals()
    found: dict[int, dict[str, Stage]] = {}
    print(f"load before {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for rows in sorted(options.rows):
        folder = Path(tempfile.mkdtemp(prefix="rows_", dir=options.folder))
        try:
            found[rows] = measure(folder, rows, options.skip)
        finally:
            shutil.rmtree(folder)
    least, most = min(found), max(found)
    for name in found[most] if most > least else ():
        growth = found[most][name].processor / max(found[least][name].processor, 1e-3)
        print(f"{name:<9} {most / least:g} times the rows take {growth:.1f} times the processor time")
    later = found[most]["start"].seconds - found[least]["start"].seconds
    memory = max(stage.mib for stage in found[most].values())
    print(f"split of {most:,} rows: {found[most]['split'].seconds:.1f} s (goal for 1,000,000: {SPLIT_GOAL_S:g} s)")
    print(f"start of training: {later:.1f} s beyond {least:,} rows (goal for 1,000,000: {START_GOAL_S:g} s)")
    print(f"largest memory: {memory:.0f} MiB (goal for 1,000,000: {MEMORY_GOAL_MIB:g} MiB)")


if __name__ == "__main__":
    main()
