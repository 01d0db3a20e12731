"""One run in a process of its own: trained or resumed, graded once on the test split, stored, its checkpoints thinned."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dcmt.cli import main as dcmt
from dcmt.loaded import LoadedRun, load_data, load_run
from experiments.results.code import code_hash, commit
from experiments.results.data import Data
from experiments.results.jobs import Job
from experiments.results.store import grade_test, write_result
from knee.engine.run import RunFolder
from knee.errors import UserError


def main() -> int:
    """``python -m experiments.results.one JOB.json --manifest … --split … --work … --out … --threads 1``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    for name in ("manifest", "split", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--any-code", action="store_true")
    given = parser.parse_args()
    job = Job.from_json(given.job.read_text(encoding="utf-8"))
    # Sources may have changed since the command was started; what is imported here is what counts.
    job = replace(job, code_hash=code_hash(job.code))
    torch.set_num_threads(given.threads)
    try:
        train(job, Data(given.manifest, given.split), given.work, threads=given.threads, any_code=given.any_code)
        store(job, given.work, given.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def train(job: Job, data: Data, work: Path, *, threads: int, any_code: bool = False) -> None:
    """Go on with the run where this very run was interrupted, else start anew. Raises UserError where it did not end."""
    path = work / job.name
    started = work / "started" / f"{job.name}.txt"
    key = f"{job.config_hash} {job.code_hash}"
    same = started.exists() and started.read_text(encoding="utf-8").startswith(job.config_hash if any_code else key)
    if same and RunFolder(path).checkpoints.folder.exists():
        arguments = ["train", "--resume", str(path)]
    else:
        found, dirty = commit()
        started.parent.mkdir(parents=True, exist_ok=True)
        started.write_text(f"{key}\n{found} {int(dirty)}\n", encoding="utf-8")
        arguments = ["train", *job.arguments, f"--data.manifest={data.manifest}", f"--data.split={data.split}"]
        arguments += [f"--runs={work}", f"--name={job.name}", f"--fit.threads={threads}", "--force"]
    if dcmt(arguments):
        raise UserError(f"{job.name}: training failed")
    latest = RunFolder(path).checkpoints.latest()[0]
    if latest is None or (latest.step < job.config["fit"]["steps"] and not job.config["fit"]["epochs"]):
        raise UserError(f"{job.name}: stopped before its last step; the same command goes on with it")


def store(job: Job, work: Path, out: Path) -> None:
    """Grade the test split with the checkpoint that the study names, and keep what the tables need."""
    loaded = load_run(work / job.name, checkpoint=job.checkpoint, device=job.config["fit"]["device"])
    data = load_data(loaded)
    table = grade_test(loaded, data, mirror=job.mirror)
    state = loaded.checkpoint.state
    last = loaded.run.checkpoints.latest()[0] or loaded.checkpoint  # the best one may be an early one
    found, dirty = (work / "started" / f"{job.name}.txt").read_text(encoding="utf-8").splitlines()[1].split()
    about = {
        **{
            name: getattr(job, name)
            for name in ("name", "study", "row", "fraction", "seed", "config_hash", "code_hash")
        },
        "commit": found,
        "changed_files": dirty == "1",
        "steps": job.config["fit"]["steps"],
        "checkpoint": job.checkpoint,
        "checkpoint_step": loaded.checkpoint.step,
        "seconds": round(float(last.state["progress"]["seconds"]), 1),
        "device": _device(loaded),
        "precision": state["precision"],
        "torch": torch.__version__,
        "labeled_images": state["labeled_images"],
        "unlabeled_images": state["unlabeled_images"],
        "test_images": len(table),
        "pixels_sha256": state["pixels_sha256"],
        "data": job.data,
        "config": job.config,
    }
    write_result(out, table, about)
    keep_one_checkpoint(loaded)


def _device(loaded: LoadedRun) -> str:
    if loaded.device.type == "cuda":
        return torch.cuda.get_device_name(loaded.device)
    return f"{loaded.device.type} ({platform.machine()}, {os.environ.get('OMP_NUM_THREADS', '?')} threads)"


def keep_one_checkpoint(loaded: LoadedRun) -> None:
    """Remove the checkpoints that no number came from: a study has dozens of runs."""
    checkpoints = loaded.run.checkpoints
    best = checkpoints.best()
    if best is not None and best.step != loaded.checkpoint.step:
        (checkpoints.folder / "best.json").unlink(missing_ok=True)
    for folder in checkpoints.folder.glob("step_*"):
        if folder != loaded.checkpoint.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
