"""A run that goes on: with its own config, changed where that is safe, and with nobody else's."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dcmt.cli import main
from dcmt.config import GraderConfig
from knee.engine.launch import SAFE_ON_RESUME, new_or_resumed
from knee.engine.options import option_names
from knee.engine.run import RunFolder, create_run, keep_config
from knee.engine.tracking import read_metrics
from knee.errors import UserError
from knee.grades import grade_set_yaml, load_grade_set

Make = Callable[..., GraderConfig]


def resume(run: RunFolder, *changes: str) -> GraderConfig:
    config, found, resumed = new_or_resumed(
        GraderConfig, ["--resume", str(run.path), *changes], kind="grader", program="train.py"
    )
    assert resumed
    assert found.path == run.path
    return config


def test_grade_set_not_seen_from_another_folder_is_told(
    grader_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path / "run", grader_config(**{"data.grade_set": "own.yaml"}), kind="grader")
    with pytest.raises(UserError, match=r"data\.grade_set of .* is own\.yaml, which does not exist .*paths\.yaml"):
        resume(run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").touch()
    resume(run)


def test_resume_takes_the_runs_own_config(started: RunFolder, grader_config: Make) -> None:
    assert resume(started) == grader_config()


def test_safe_changes_are_taken_on_resume(started: RunFolder) -> None:
    config = resume(started, "--fit.steps", "99", "--data.workers", "2", "--fit.log_every", "1")
    assert (config.fit.steps, config.data.workers, config.fit.log_every) == (99, 2, 1)
    keep_config(started, config)
    assert resume(started) == config, "the next resuming goes on with them, without being told again"
    assert resume(started, "--fit.steps", "120").fit.steps == 120
    assert started.private.stat().st_mode & 0o077 == 0


def test_the_command_that_started_a_run_resumes_it_though_it_keeps_its_grades(
    tmp_path: Path, grader_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grade_set = load_grade_set("cartilage")
    Path("own").write_text(grade_set_yaml(grade_set))
    run = create_run(tmp_path / "run", grader_config(**{"data.grade_set": "own"}), kind="grader")
    assert "data.grade_set: own" in run.private.read_text(), "whatever it is called, it is a path"
    run.grade_set.write_text(grade_set_yaml(grade_set))
    assert resume(run, "--data.grade_set", "own", "--fit.steps", "9").fit.steps == 9
    Path("own").write_text(grade_set_yaml(dataclasses.replace(grade_set, names=("c", "b", "a"))))
    with pytest.raises(UserError, match=r"cannot change data\.grade_set"):
        resume(run, "--data.grade_set", "own")


def test_unsafe_changes_are_refused_by_name(started: RunFolder) -> None:
    with pytest.raises(UserError, match=r"cannot change optimizer\.learning_rate, fit\.seed; it may change fit\.steps"):
        resume(started, "--optimizer.learning_rate", "0.5", "--fit.seed", "7", "--fit.steps", "99")
    with pytest.raises(UserError, match=r"cannot change data\.labeled_fraction"):
        resume(started, "--labeled-fraction", "0.5")


def test_every_option_is_either_safe_to_change_or_refused_by_name(
    started: RunFolder, grader_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left out of the comparison."""
    before = grader_config()
    monkeypatch.setattr("knee.engine.launch.config_from_values", lambda *_, **__: before)
    names = option_names(GraderConfig)
    assert len(names) > 50
    for name in names:
        after = with_another_value(before, name)
        monkeypatch.setattr("knee.engine.launch.read_config", lambda *_, after=after, **__: after)
        if name in SAFE_ON_RESUME:
            assert resume(started) is after
        else:
            with pytest.raises(UserError, match=rf"cannot change {re.escape(name)};"):
                resume(started)


def with_another_value(config: GraderConfig, name: str) -> GraderConfig:
    """A copy with another value, valid or not, in the place of the option called ``name``."""
    after = copy.deepcopy(config)
    section, _, field = name.rpartition(".")
    # A grade set is read, to see whether it is the same by another name.
    value = "kl" if name == "data.grade_set" else "another value"
    object.__setattr__(getattr(after, section) if section else after, field, value)
    return after


@pytest.mark.parametrize("resumed", [False, True])
def test_force_is_refused_since_no_run_is_replaced(started: RunFolder, resumed: bool) -> None:
    with pytest.raises(UserError, match=r"runs are never overwritten, .* the new run becomes NAME-2"):
        new_or_resumed(
            GraderConfig,
            ["--force", *(["--resume", str(started.path)] if resumed else [])],
            kind="grader",
            program="train.py",
        )
    assert (started.path / "metrics.csv").exists()


def test_another_device_on_resume_is_noted(started: RunFolder, said: list[str]) -> None:
    assert resume(started, "--fit.device", "auto").fit.device == "auto"
    assert any("the device changes from cpu to auto" in line for line in said)


def test_resume_of_another_kind_is_refused(tmp_path: Path, grader_config: Make) -> None:
    create_run(tmp_path / "run", grader_config(), kind="segmenter")
    with pytest.raises(UserError, match="kind segmenter, not grader"):
        resume(RunFolder(tmp_path / "run"))


def test_resume_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        resume(RunFolder(tmp_path / "run"))


def test_a_run_that_lost_its_checkpoints_does_not_start_over(trained_run: RunFolder, tmp_path: Path, capsys) -> None:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "run")))
    shutil.rmtree(run.checkpoints.folder)
    before = (run.path / "metrics.csv").read_bytes()
    assert main(["train", "--resume", str(run.path)]) == 2
    assert "has no checkpoints, although" in capsys.readouterr().err
    assert (run.path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("left", ["the empty folder", "half a checkpoint", "half a checkpoint, no validation yet"])
def test_checkpoints_removed_one_by_one_were_there_too(
    left: str, trained_run: RunFolder, tmp_path: Path, capsys
) -> None:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "run")))
    shutil.rmtree(run.checkpoints.folder)
    (run.checkpoints.folder / ("" if left == "the empty folder" else ".writing_00000004_99")).mkdir(parents=True)
    if "no validation" in left:
        (run.path / "metrics.csv").write_text("step,name,value\n1,loss/total,2.5\n")
    assert main(["train", "--resume", str(run.path)]) == 2
    assert "has no checkpoints, although" in capsys.readouterr().err


class Killed(BaseException):
    """As by kill -9: nothing is written after it."""


def killed(*_: object, **__: object) -> None:
    raise Killed


MOMENTS = {
    "before a row": "knee.engine.checkpoint.Checkpoints.begin",
    "after its rows": "knee.engine.checkpoint.Checkpoints.save",
    "first file": "knee.engine.checkpoint.save_file",
    "state": "knee.engine.checkpoint.write_json",
    "move": "pathlib.Path.rename",
    "note of the best": "knee.engine.checkpoint.Checkpoints.mark_best",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_up_to_its_first_checkpoint_goes_on(
    moment: str, grader_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """From step 0, and its table holds every step once; twice in a row, too."""
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(MOMENTS[moment], killed)
            main(["train", "--resume", str(run.path)])
    whole = run.checkpoints.latest()[0]
    rows = read_metrics(run.path / "metrics.csv")
    assert bool(rows) is (moment != "before a row")
    capsys.readouterr()
    assert main(["train", "--resume", str(run.path)]) == 0
    told = capsys.readouterr().out
    assert ("no checkpoint yet: starting from step 0" in told) is (whole is None) is (moment != "note of the best")
    assert not run.checkpoints.none_yet
    rows = read_metrics(run.path / "metrics.csv")
    assert len(rows) == len({(step, name) for step, name, _ in rows})
    assert rows[0][0] >= 1


@pytest.mark.parametrize("kind", ["probe", "zeroshot"])
def test_what_has_nothing_to_resume_is_told(kind: str, tmp_path: Path, grader_config: Make) -> None:
    create_run(tmp_path / "run", grader_config(), kind=kind)
    with pytest.raises(UserError, match=rf"dcmt {kind} has nothing to resume: run it again"):
        resume(RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda data: data.replace(b",", b";"), 1),
        (lambda data: data.replace(b"loss/total", b"loss\xff,total", 1), 0),
        (lambda data: b"\0\0\0" + data.replace(b"\n", b"\0\nx\n", 1), 2),
    ],
    ids=["semicolons", "a comma too many", "another line"],
)
def test_a_table_of_metrics_that_was_changed_is_neither_lost_nor_believed(
    damage: Callable[[bytes], bytes], line: int, trained_run: RunFolder, tmp_path: Path, capsys
) -> None:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "run")))
    table = run.path / "metrics.csv"
    table.write_bytes(damage(table.read_bytes()))
    before = table.read_bytes(), run.config.read_bytes()
    assert main(["train", "--resume", str(run.path), "--fit.steps", "7"]) == 2
    told = capsys.readouterr().err
    assert "is not step,name,value, so the table was edited; restore it, or move it away" in told
    assert not line or f"metrics.csv line {line}:" in told
    assert (table.read_bytes(), run.config.read_bytes()) == before
