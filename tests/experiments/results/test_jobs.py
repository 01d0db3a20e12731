"""What makes a stored run stale, and what does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.results.jobs import ROOT, fingerprint, make_job
from experiments.results.phantom import PHANTOM
from experiments.results.store import read_result
from experiments.results.study import Run
from experiments.results.train import PhantomPlan

RUN = Run("dcmt", 0.1, 1)
STORED = sorted((ROOT / "docs" / "results" / "runs").glob("*.json"))


def of(run: Run = RUN, *more: str, plan: PhantomPlan | None = None, version: int = 1) -> str:
    study = dataclasses.replace(PHANTOM, version=version)
    return fingerprint(make_job(study, run, (plan or PhantomPlan()).about(run.seed), more=more).about)


def test_config_data_and_version_count_and_nothing_else():
    harmless = ("--fit.threads=4", "--data.manifest=elsewhere.csv", "--name=other", "--fit.precision=fp32")
    assert of(RUN, *harmless) == of()
    others = [of(RUN, "--fit.steps=9"), of(RUN, "--loss.teacher_flip=true"), of(version=2)]
    others += [of(Run("dcmt", 0.1, 2)), of(Run("dcmt", 0.3, 1)), of(plan=PhantomPlan(patients=30))]
    assert len({of(), *others}) == 7
    job = make_job(PHANTOM, RUN, {}, more=harmless)
    assert job.name == "phantom-dcmt-f0.1-s1"
    assert "elsewhere" not in json.dumps(job.about)


def test_options_of_the_consistency_losses_count_only_where_one_has_a_weight():
    for option in ("--loss.ramp=0.7", "--loss.ramp_start=0.1", "--loss.teacher_temperature=0.9"):
        assert of(RUN, option) != of()
        assert of(Run("supervised", 0.1, 1), option) == of(Run("supervised", 0.1, 1))


def test_a_run_stored_before_an_option_existed_is_current_while_the_option_has_its_default():
    about = make_job(PHANTOM, RUN, PhantomPlan().about(1)).about
    stored = json.loads(json.dumps(about))
    del stored["config"]["teacher"], stored["version"], stored["config"]["fit"]["most_bad_steps"]
    assert fingerprint(stored) != fingerprint(about), "the study sets the teacher's decay"
    stored["config"]["teacher"] = {"decay": about["config"]["teacher"]["decay"]}
    assert fingerprint(stored) == fingerprint(about)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_published_run_can_be_read(path: Path):
    run = read_result(path.parent, path.stem)
    assert run is not None
    assert run.probabilities("teacher").shape == (len(run.grades), 3 if run.about["study"] == "phantom" else 5)
    assert len(fingerprint(run.about)) == 16
