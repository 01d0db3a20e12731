"""Run the papers' comparisons and write their tables.

    python -m experiments.results phantom                             the phantom's seven trainings, three seeds: make results
    python -m experiments.results phantom --full                      30 and 50 % of the labels too: make results-full
    python -m experiments.results radiographs --radiographs FOLDER    the published radiographs: make results-radiographs
    python -m experiments.results radiographs_gpu --radiographs FOLDER   larger networks, on a GPU: make results-radiographs-gpu
    python -m experiments.results phantom --tables-only               tables and figure from the stored runs, no training

Runs that are done are not done again; an interrupted one goes on. Further options go to every training, for a trial:
--fit.steps 20. What differs from the study, in options, data, seeds or bootstrap draws, is kept apart from docs/results
unless --out says so. --rows, --fractions and --seeds choose what is run; tables hold every run that is stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.results.code import ROOT
from experiments.results.data import DataPlan, PhantomPlan, RadiographPlan
from experiments.results.figure import write_figure
from experiments.results.jobs import Job, check_seeds, differences_between_rows, make_job
from experiments.results.phantom import PHANTOM
from experiments.results.radiographs import RADIOGRAPHS
from experiments.results.radiographs_gpu import RADIOGRAPHS_GPU
from experiments.results.readme import include_tables
from experiments.results.run import Runner
from experiments.results.statistics import SAMPLES, Results
from experiments.results.store import read_result
from experiments.results.study import Study, run_name
from experiments.results.tables import write_claims, write_per_grade, write_table
from knee.errors import UserError

OUT = ROOT / "docs" / "results"
STUDIES = {study.name: study for study in (PHANTOM, RADIOGRAPHS, RADIOGRAPHS_GPU)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where a run failed, 2 for a mistake, 130 when stopped."""
    options = _options(arguments)
    try:
        return _do(options, STUDIES[options.study])
    except UserError as error:
        print(f"results: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"results: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _do(options: argparse.Namespace, study: Study) -> int:
    out: Path = options.out
    faults: list[str] = []
    if not options.tables_only:
        check_seeds(study, options.seeds)
        for unlike in differences_between_rows(study, more=options.train):
            print(f"note: {unlike}")
        plan = _plan(options)
        jobs = [
            make_job(study, cell, seed, plan, more=options.train)
            for seed in options.seeds or study.all_seeds
            for cell in study.trainings(full=options.full, rows=options.rows, fractions=options.fractions)
            if _is_run(study, seed, cell.fraction, options)
        ]
        if not jobs:
            given = " ".join(map(str, options.seeds))
            has = " ".join(map(str, study.seeds))
            raise UserError(f"{study.name} has none of the seeds {given} at these fractions, only {has}")
        runner = Runner(options.work, out / "runs", options.threads, options.jobs, options.any_code)
        faults = runner.run_all(jobs, plan)
    seeds = sorted({*study.all_seeds, *options.seeds})
    results = load_results(study, out / "runs", seeds, samples=options.samples)
    if not results.runs and options.tables_only:
        raise UserError(f"no run of {study.name} is stored in {out / 'runs'}; give another folder by --out")
    write_everything(results, out)
    if out == OUT:
        include_tables(ROOT / "README.md")
    if not options.tables_only:
        _say_what_is_old(results, jobs)
    print(f"{len(results.runs)} runs in the tables: {out}")
    for fault in faults:
        print(f"failed: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _is_run(study: Study, seed: int, fraction: float, options: argparse.Namespace) -> bool:
    """Whether the study has a seed at a labeled fraction; those that it has nowhere are a trial, and run at all."""
    here = study.seeds_at(fraction, full=options.full or bool(options.seeds))
    return seed in here or seed not in study.all_seeds


def _plan(options: argparse.Namespace) -> DataPlan:
    if options.study == "phantom":
        return PhantomPlan(patients=options.patients, segmenter_steps=options.segmenter_steps)
    if options.radiographs is None:
        raise UserError("give the folder of the published radiographs (train/0 … test/4): --radiographs FOLDER")
    return RadiographPlan(options.radiographs)


def load_results(study: Study, folder: Path, seeds: Sequence[int], *, samples: int = SAMPLES) -> Results:
    """The stored runs of a study's cells, of the given seeds."""
    found = {}
    for cell in study.trainings(full=True):
        for seed in seeds:
            stored = read_result(folder, run_name(study.name, cell.row, cell.fraction, seed))
            if stored is not None:
                found[cell.row, cell.fraction, seed] = stored
    return Results(study, found, samples)


def write_everything(results: Results, out: Path) -> None:
    """All tables, the claims and the figure of a study."""
    study = results.study
    out.mkdir(parents=True, exist_ok=True)
    for table in study.tables:
        if any(results.seeds(cell) for cell in table.cells):
            write_table(results, table, out)
    write_claims(results, study.claims, out, f"{study.name}_claims")
    if study.per_grade:
        write_per_grade(results, out, f"{study.name}_per_grade")
    write_figure(results, out, "f1_by_fraction" if study.name == "phantom" else f"{study.name}_f1_by_fraction")


def _say_what_is_old(results: Results, jobs: Sequence[Job]) -> None:
    """Name stored runs in the tables that today's config or code would not make."""
    current = {job.name: job for job in jobs}
    for kind in ("config", "code"):
        old = [
            run.name
            for run in results.runs.values()
            if run.name in current and run.about[f"{kind}_hash"] != getattr(current[run.name], f"{kind}_hash")
        ]
        if old:
            print(f"note: of another {kind} than now: {', '.join(sorted(old))}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--full", action="store_true", help="the part that takes long, too")
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    parser.add_argument("--radiographs", type=Path, metavar="FOLDER", help="the published layout, SPLIT/GRADE/*.png")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="default: those of the study")
    parser.add_argument("--rows", nargs="+", default=[], help="run these rows alone")
    parser.add_argument("--fractions", type=float, nargs="+", default=[], help="run these labeled fractions alone")
    parser.add_argument("--steps", type=int, help="optimiser steps of every run (a trial)")
    parser.add_argument("--patients", type=int, default=PhantomPlan().patients, help="of the phantom (a trial)")
    parser.add_argument("--segmenter-steps", type=int, default=0, help="of the phantom's segmenter (a trial)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads a run (default 1)")
    parser.add_argument("--any-code", action="store_true", help="results and data of older code will do")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="bootstrap draws")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "results", help="data and run folders")
    parser.add_argument("--out", type=Path, help="tables, figure and runs/ (default: docs/results)")
    options, rest = parser.parse_known_args(arguments)
    options.train = [*rest, *([f"--fit.steps={options.steps}"] if options.steps else [])]
    if trial := _is_trial(options):
        options.work = options.work / "trial"
    options.out = options.out or (options.work / "tables" if trial else OUT)
    return options


def _is_trial(options: argparse.Namespace) -> bool:
    """Whether anything differs from the study."""
    return (
        bool(options.train)
        or options.patients != PhantomPlan().patients
        or bool(options.segmenter_steps)
        or not set(options.seeds) <= set(STUDIES[options.study].all_seeds)
        or options.samples != SAMPLES
    )


if __name__ == "__main__":
    sys.exit(main())
