"""The command line: what is trained, what is skipped, where results go."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

from experiments.results import __main__ as command
from experiments.results.__main__ import _options, load_results, main, train_missing
from experiments.results.jobs import ROOT
from experiments.results.phantom import PHANTOM
from experiments.results.store import write_result
from experiments.results.train import PhantomPlan
from experiments.side_by_side import Work


def test_what_differs_from_a_study_is_kept_apart(tmp_path):
    work = [f"--work={tmp_path}"]
    for more in ([], ["--seeds", "1", "2"], ["--rows", "dcmt"], ["--tables-only"], ["--threads=2"]):
        assert _options(["phantom", *work, *more]).out == ROOT / "docs" / "results"
    for more in (["--trial"], ["--fit.steps=20"], ["--fit.device=cuda"]):
        for how in ([], ["--tables-only"]):  # the tables of a trial are those of the trial's runs
            options = _options(["phantom", *work, *more, *how])
            assert (options.work, options.out) == (tmp_path / "trial", tmp_path / "trial" / "tables")


def test_mistakes_are_one_line_and_a_full_disk_leaves_the_old_table(made_up, monkeypatch, tmp_path, capsys):
    assert main(["radiographs", f"--out={tmp_path}", f"--work={tmp_path}"]) == 2
    assert "give the folder of the published radiographs" in capsys.readouterr().err
    tables = ["phantom", "--tables-only", f"--out={tmp_path}"]
    assert main(tables) == 2
    assert f"no run of phantom is stored in {tmp_path / 'runs'}; give another folder" in capsys.readouterr().err
    run = made_up("dcmt", 0.1, 1)
    write_result(tmp_path / "runs", run.table, run.about)
    (tmp_path / "phantom.csv").write_text("earlier\n")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(command, "SAMPLES", 20)
    assert main(tables) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "phantom.csv").read_text() == "earlier\n"


def test_current_runs_are_skipped_and_those_of_an_earlier_version_are_not(made_up, tmp_path, monkeypatch, capsys):
    runs = PHANTOM.select(full=False, seeds=[1])[:3]
    options = Namespace(out=tmp_path, work=tmp_path, jobs=1, threads=1, train=[])
    started: list[str] = []

    def in_process(work: list[Work], jobs: int, then) -> dict[str, object]:
        assert [one.arguments[1] for one in work] == ([1] if work else [])
        for one in (later for first in work for later in then(first, None)):
            started.append(one.name)
            job = one.arguments[0]
            made = made_up(job.about["row"], job.about["fraction"], job.about["seed"])
            if one.name != broken:
                write_result(tmp_path / "runs", made.table, {**made.about, **job.about})
        return {}

    def train(version: int = 1) -> int:
        started.clear()
        train_missing(dataclasses.replace(PHANTOM, version=version), runs, PhantomPlan(), options)
        return len(started)

    monkeypatch.setattr(command, "side_by_side", in_process)
    broken = "phantom-dcmt-f0.1-s1"
    assert train() == 3
    assert train() == 1 and started == [broken]
    assert "3 runs, 2 done already" in capsys.readouterr().out
    broken = ""
    assert (train(), train(), train(version=2), train(version=2)) == (1, 0, 3, 0)
    assert len(load_results(PHANTOM, tmp_path / "runs").stale) == 3
    assert not load_results(dataclasses.replace(PHANTOM, version=2), tmp_path / "runs").stale
