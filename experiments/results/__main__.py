"""Train the runs of a study and write its tables.

    python -m experiments.results phantom                             the phantom, three seeds: make results
    python -m experiments.results phantom --full                      30 and 50 % of the labels too: make results-full
    python -m experiments.results radiographs --radiographs FOLDER    the published radiographs: make results-radiographs
    python -m experiments.results radiographs_pretrained --radiographs FOLDER   from ImageNet weights: make results-pretrained
    python -m experiments.results radiographs_attention --radiographs FOLDER   attention: make results-radiographs-attention
    python -m experiments.results radiographs_gpu --radiographs FOLDER   larger networks, on a GPU: make results-radiographs-gpu
    python -m experiments.results phantom --tables-only               tables and figure from the stored runs, no training

A run whose result is stored with the same config, data and study version is not trained again; an interrupted one is
resumed. --rows, --fractions and --seeds choose what is trained; the tables hold every stored run. Other options, such as
--fit.steps 20, go to every training; results of such runs and of --trial are kept outside docs/results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.results.headline import write_headline
from experiments.results.jobs import ROOT, Job, fingerprint, make_job
from experiments.results.phantom import PHANTOM
from experiments.results.pretrained import RADIOGRAPHS_PRETRAINED
from experiments.results.radiographs import RADIOGRAPHS, RADIOGRAPHS_ATTENTION, RADIOGRAPHS_GPU
from experiments.results.statistics import SAMPLES, Results
from experiments.results.store import read_result
from experiments.results.study import Run, Study, run_name
from experiments.results.tables import write_tables
from experiments.results.train import Data, DataPlan, JointPlan, PhantomPlan, RadiographPlan, make_data, run_job
from experiments.side_by_side import Work, side_by_side
from knee.errors import UserError

OUT = ROOT / "docs" / "results"
STUDIES = {
    study.name: study
    for study in (PHANTOM, RADIOGRAPHS, RADIOGRAPHS_PRETRAINED, RADIOGRAPHS_ATTENTION, RADIOGRAPHS_GPU)
}
TRIAL_STEPS, TRIAL_SAMPLES = 20, 200


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where a run failed, 2 for a mistake of the user, 130 when stopped."""
    options = _options(arguments)
    try:
        return _run(options, STUDIES[options.study])
    except UserError as error:
        print(f"results: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"results: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace, study: Study) -> int:
    out: Path = options.out
    failed = False
    if not options.tables_only:
        runs = study.select(full=options.full, rows=options.rows, fractions=options.fractions, seeds=options.seeds)
        try:
            train_missing(study, runs, _plan(options), options)
        except RuntimeError as error:
            print(f"failed: {error}", file=sys.stderr)
            failed = True
    results = load_results(study, out / "runs", samples=options.samples, more=options.train)
    if results.runs:
        write_tables(results, out)
        if study in (RADIOGRAPHS, RADIOGRAPHS_PRETRAINED):
            starts = {"random": RADIOGRAPHS, "imagenet": RADIOGRAPHS_PRETRAINED}
            found = {name: results if one is study else load_results(one, out / "runs") for name, one in starts.items()}
            write_headline(found, out)
    elif options.tables_only:
        raise UserError(f"no run of {study.name} is stored in {out / 'runs'}; give another folder by --out")
    if results.stale:
        print(f"note: of another config or version than now: {', '.join(sorted(results.stale))}")
    print(f"{len(results.runs)} runs in the tables: {out}")
    return int(failed)


def _plan(options: argparse.Namespace) -> DataPlan:
    if options.study == "phantom":
        return PhantomPlan(patients=60, segmenter_steps=TRIAL_STEPS) if options.trial else PhantomPlan()
    if options.radiographs is None:
        raise UserError("give the folder of the published radiographs (train/0 … test/4): --radiographs FOLDER")
    plan = JointPlan if options.study == RADIOGRAPHS_ATTENTION.name else RadiographPlan
    return plan(options.radiographs)


def train_missing(study: Study, runs: Sequence[Run], plan: DataPlan, options: argparse.Namespace) -> None:
    """Train the runs without a current result. Raises RuntimeError where some failed, after the others."""
    out: Path = options.out / "runs"
    work: Path = options.work
    about = {seed: plan.about(seed) for seed in dict.fromkeys(run.seed for run in runs)}
    jobs = [make_job(study, run, about[run.seed], more=options.train) for run in runs]
    missing = [job for job in jobs if not is_done(job, out)]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} done already", flush=True)

    def log(name: str) -> Path:
        return Path(work) / "logs" / f"{name}.log"

    def data(seed: int) -> Work:
        name = f"{study.name}-data-s{seed}"
        return Work(name, log(name), make_data, (plan, seed, work, study.version))

    def then(done: Work, found: Data | None) -> list[Work]:
        if done.call is not make_data:
            return []
        here = [job for job in missing if job.about["seed"] == done.arguments[1]]
        return [Work(job.name, log(job.name), run_job, (job, found, work, out, options.threads)) for job in here]

    side_by_side([data(seed) for seed in dict.fromkeys(job.about["seed"] for job in missing)], options.jobs, then)


def is_done(job: Job, folder: Path) -> bool:
    """Whether a result of this config, data and version is stored."""
    found = read_result(folder, job.name)
    return found is not None and fingerprint(found.about) == fingerprint(job.about)


def load_results(study: Study, folder: Path, *, samples: int = SAMPLES, more: Sequence[str] = ()) -> Results:
    """The stored runs of a study, and the names of those trained with another config (with ``more`` options) or version."""
    found = {}
    for run in study.trainings(full=True):
        stored = read_result(folder, run_name(study.name, run))
        if stored is not None:
            found[run] = stored
    stale = [
        stored.name
        for run, stored in found.items()
        if fingerprint(stored.about) != fingerprint(make_job(study, run, stored.about["data"], more=more).about)
    ]
    return Results(study, found, samples, frozenset(stale))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--full", action="store_true", help="train the part that takes long too")
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    parser.add_argument("--radiographs", type=Path, metavar="FOLDER", help="the published layout, SPLIT/GRADE/*.png")
    parser.add_argument("--rows", nargs="+", default=[], help="train only these methods")
    parser.add_argument("--fractions", type=float, nargs="+", default=[], help="train only at these labeled fractions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="train only with these seeds")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default 1)")
    parser.add_argument("--trial", action="store_true", help=f"a quick check: {TRIAL_STEPS} steps, a small phantom")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "results", help="data and run folders")
    parser.add_argument("--out", type=Path, help="tables, figure and runs/ (default: docs/results)")
    options, rest = parser.parse_known_args(arguments)
    options.train = [*([f"--fit.steps={TRIAL_STEPS}"] if options.trial else []), *rest]
    options.samples = TRIAL_SAMPLES if options.trial else SAMPLES
    if options.train:
        options.work = options.work / "trial"
    options.out = options.out or (options.work / "tables" if options.train else OUT)
    return options


if __name__ == "__main__":
    sys.exit(main())
