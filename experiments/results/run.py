"""Runs what is not done yet, several runs side by side, each in a process of its own; may be stopped and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from experiments.results.code import ROOT
from experiments.results.data import DataPlan
from experiments.results.jobs import Job, log_path
from experiments.results.store import Stored, read_result
from experiments.results.study import Network
from knee.errors import UserError


@dataclass
class Runner:
    """Where runs go, and the processes under way."""

    work: Path
    out: Path
    threads: int = 1
    side_by_side: int = 2
    any_code: bool = False
    _alive: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: bool = False

    def run_all(self, jobs: Sequence[Job], plan: DataPlan) -> list[str]:
        """Do what is not done; a line for each run that ends. Returns what went wrong. KeyboardInterrupt on a signal."""
        waiting = [job for job in jobs if not self.is_done(job)]
        print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} done already", flush=True)
        if not waiting:
            return []
        signal.signal(signal.SIGTERM, _interrupt)
        # Prepared first: runs of one seed share the data.
        seeds = list(dict.fromkeys(job.seed for job in waiting))
        with ThreadPoolExecutor(self.side_by_side) as pool:
            try:
                made = dict(zip(seeds, pool.map(lambda seed: self._make_data(plan, seed), seeds), strict=True))
                begun = time.monotonic()
                futures = {pool.submit(self._run_one, job, *made[job.seed]): job for job in waiting}
                faults = []
                for number, future in enumerate(as_completed(futures), 1):
                    job, error = futures[future], future.exception()
                    left = (time.monotonic() - begun) / number * (len(waiting) - number)
                    faults += [str(error)] if error else []
                    words = f"FAILED: {error}" if error else self._sentence(job)
                    print(f"[{number}/{len(waiting)}] {job.name}: {words}; about {left / 60:.0f} min left", flush=True)
            except KeyboardInterrupt:
                self._stop(pool)
                raise
        return faults

    def is_done(self, job: Job) -> bool:
        """Whether a result of this config and data is stored, of this code unless any will do."""
        found = read_result(self.out, job.name)
        if found is None or found.about["config_hash"] != job.config_hash:
            return False
        return self.any_code or found.about["code_hash"] == job.code_hash

    def _make_data(self, plan: DataPlan, seed: int) -> tuple[Path, Path]:
        data = plan.make(seed, self.work, lambda given: self._dcmt(f"data-s{seed}", given), any_code=self.any_code)
        return data.manifest, data.split

    def _dcmt(self, name: str, arguments: Sequence[str]) -> None:
        self._process(name, [sys.executable, "-m", "dcmt.cli", *arguments])

    def _run_one(self, job: Job, manifest: Path, split: Path) -> None:
        path = self.work / "jobs" / f"{job.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(job.to_json(), encoding="utf-8")
        where = {"manifest": manifest, "split": split, "work": self.work, "out": self.out, "threads": self.threads}
        options = [f"--{name}={value}" for name, value in where.items()] + ["--any-code"] * self.any_code
        self._process(job.name, [sys.executable, "-m", "experiments.results.one", str(path), *options])

    def _process(self, name: str, command: Sequence[str]) -> None:
        """Run a command, its output in a log. Raises UserError with its last words where it fails."""
        log = log_path(self.work, name)
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": os.pathsep.join(paths)}
        environment["PYTHONUNBUFFERED"] = "1"  # a log that can be followed
        with log.open("ab") as file:
            with self._lock:
                if self._stopping:
                    raise UserError("stopped")
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
                self._alive.add(process)
            code = process.wait()
            with self._lock:
                self._alive.discard(process)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"{name} ended with code {code}: {' / '.join(lines[-2:])} (all of it: {log})")

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Ask the runs to save and end; nothing new starts."""
        pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._stopping = True
            for process in self._alive:
                process.terminate()
        print("stopping: runs under way save themselves; the same command goes on with them", flush=True)

    def _sentence(self, job: Job) -> str:
        found = read_result(self.out, job.name)
        assert found is not None
        networks: tuple[Network, ...] = ("student", "teacher")
        shares = ", ".join(f"{name} {accuracy(found, name):.3f}" for name in networks)
        return f"{found.about['seconds']:.0f} s, accuracy {shares}"


def accuracy(found: Stored, network: Network) -> float:
    """Share graded right, to see at a glance that a run is sound."""
    predicted = found.probabilities(network).argmax(axis=1)
    return float((predicted == found.grades).mean())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
