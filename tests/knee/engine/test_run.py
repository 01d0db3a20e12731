"""The run folder: never overwritten unasked, and free of paths outside local/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from knee.engine.lock import RunLock
from knee.engine.run import RunFolder, create_run, earlier_until_begun, open_run, split_private
from knee.errors import UserError

Make = Callable[..., GraderConfig]


def test_existing_run_is_refused_and_force_starts_it_anew(started: RunFolder, grader_config: Make) -> None:
    with pytest.raises(UserError, match=r"exists already; .*--name.*--resume.*--force"):
        create_run(started.path, grader_config(), kind="grader")
    create_run(started.path, grader_config(), kind="grader", force=True)
    assert not (started.path / "metrics.csv").exists()


def test_force_removes_run_folders_alone(tmp_path: Path, grader_config: Make) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a run folder"):
        create_run(tmp_path / "thesis", grader_config(), kind="grader", force=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("a")
    for force in (False, True):
        with pytest.raises(UserError):
            create_run(tmp_path / "file", grader_config(), kind="grader", force=force)


@pytest.mark.parametrize("leads", ["file", "link to nowhere"])
def test_force_removes_no_readers_verdicts(leads: str, started: RunFolder, tmp_path: Path, grader_config: Make) -> None:
    if leads == "file":
        started.verdicts.write_text("case,reviewer\n")
    else:
        started.verdicts.symlink_to(tmp_path / "a drive that is away")
    before = sorted(started.path.rglob("*"))
    with pytest.raises(UserError, match=r"verdicts\.csv holds readers' verdicts.*another --name, or move that file"):
        create_run(started.path, grader_config(), kind="grader", force=True)
    assert sorted(started.path.rglob("*")) == before
    started.verdicts.unlink()
    create_run(started.path, grader_config(), kind="grader", force=True)
    assert not (started.path / "metrics.csv").exists()


def test_run_that_never_began_starts_anew_unasked(tmp_path: Path, grader_config: Make) -> None:
    create_run(tmp_path / "run", grader_config(), kind="grader")
    create_run(tmp_path / "run", grader_config(**{"fit.seed": 5}), kind="grader")
    assert open_run(tmp_path / "run")[1]["fit"]["seed"] == 5


def test_what_is_written_before_the_first_step_is_no_obstacle(tmp_path: Path, grader_config: Make) -> None:
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    (run.path / "template.npy").touch()
    (run.path / "grade_set.yaml").touch()
    (run.path / ".config.yaml.12.part").touch()
    for name in (
        "lock",
        "rejected.csv",
        "split.csv",
        "cases.csv",
        ".case_salt",
        ".case_salt.a_b1",
        ".rejected.csv.9.part",
    ):
        (run.local / name).touch()
    create_run(run.path, grader_config(), kind="grader")
    assert [path.name for path in run.local.iterdir()] == ["paths.yaml"]


@pytest.mark.parametrize("config", ["data: mine\n", "kind: survey\n", "kind: grader\n", "a: [\n", "[1]"])
@pytest.mark.parametrize("force", [False, True])
def test_folder_of_somebody_with_a_config_is_not_removed(
    config: str, force: bool, tmp_path: Path, grader_config: Make
) -> None:
    folder = tmp_path / "exp1"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_text("a knee")
    (folder / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"exists already and is not a run folder .*give another --name"):
        create_run(folder, grader_config(), kind="grader", force=force)
    assert sorted(path.name for path in folder.rglob("*")) == ["a.png", "config.yaml", "images"]


@pytest.mark.parametrize("name", ["notes.txt", "local/notes.txt", "images/a.png"])
def test_run_that_never_began_but_holds_something_else_is_kept(name: str, tmp_path: Path, grader_config: Make) -> None:
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text("mine")
    with pytest.raises(UserError, match=r"exists already; .*--force"):
        create_run(run.path, grader_config(), kind="grader")
    assert (run.path / name).read_text() == "mine"
    create_run(run.path, grader_config(), kind="grader", force=True)
    assert not (run.path / name).exists()


@pytest.mark.parametrize("moment", ["mkdir", "write_text", "chmod", "rename"])
def test_kill_while_a_run_folder_is_made_leaves_no_half(
    moment: str, tmp_path: Path, grader_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, moment, killed)
        with pytest.raises(Killed):
            create_run(tmp_path / "run", grader_config(), kind="grader")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("knee.engine.run._alive", lambda process: False)
    create_run(tmp_path / "run", grader_config(), kind="grader")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("target", ["run", "empty", "nowhere"])
@pytest.mark.parametrize("force", [False, True])
def test_link_is_not_started_anew(
    target: str, force: bool, started: RunFolder, tmp_path: Path, grader_config: Make
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"link is a link.*--name"):
        create_run(tmp_path / "link", grader_config(), kind="grader", force=force)
    assert (started.path / "metrics.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "run"]


def test_force_does_not_remove_a_run_that_is_alive(started: RunFolder, grader_config: Make) -> None:
    with RunLock(started.path), pytest.raises(UserError, match="another process is training in"):
        create_run(started.path, grader_config(), kind="grader", force=True)
    assert (started.path / "metrics.csv").exists()


def test_leftover_of_a_dead_process_that_had_our_number_is_no_obstacle(tmp_path: Path, grader_config: Make) -> None:
    """In a container that is started anew, processes get the numbers that they had."""
    (tmp_path / f".run.new.{os.getpid()}" / "local").mkdir(parents=True)
    (tmp_path / f".run.old.{os.getpid()}" / "local").mkdir(parents=True)
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    (run.path / "metrics.csv").write_text("")
    (tmp_path / f".run.old.{os.getpid()}" / "local").mkdir(parents=True)
    create_run(run.path, grader_config(), kind="grader", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_paths_stay_in_local(tmp_path: Path, grader_config: Make) -> None:
    config = grader_config(
        **{"data.cache": "/home/jane-doe/cache", "model.weights": "w.safetensors", "runs": str(tmp_path)}
    )
    run = create_run(tmp_path / "run", config, kind="grader")
    text = run.config.read_text()
    for secret in (config.data.manifest, config.data.split, "jane-doe", "w.safetensors", str(tmp_path)):
        assert secret not in text
    assert yaml.safe_load(run.private.read_text())["data.cache"] == "/home/jane-doe/cache"
    assert run.local.stat().st_mode & 0o077 == 0
    assert run.private.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "name", ["prompts.yaml", "towers.npy", "unet.safetensors", "mine.CSV", "a/b", r"C:\\data", "./x"]
)
def test_file_in_the_current_folder_is_a_path_too(name: str) -> None:
    public, private = split_private({"clip": {"text": name, "image": "hf-hub:org/model", "vit": "vit_b16.augreg_in1k"}})
    assert name not in str(public)
    assert public["clip"]["image"] == "hf-hub:org/model"
    assert private == {"clip.text": name}


def test_run_without_its_local_folder_still_opens(tmp_path: Path, grader_config: Make) -> None:
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    run.private.unlink()
    assert open_run(run.path)[1]["data"]["manifest"] == "(in local/paths.yaml)"


@pytest.mark.parametrize("content", ["[1]", "a: [", "kindd: grader", "3"])
def test_folder_that_is_no_run_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        open_run(tmp_path)


def test_data_not_seen_from_another_folder_is_told_with_the_file_to_mend(
    grader_config: Make,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(phantom.parent.parent)
    config = grader_config(**{"data.manifest": "data/manifest.csv", "data.split": "data/split.csv", "fit.steps": 1})
    run = create_run(tmp_path / "run", config, kind="grader")
    train_grader(config, run, say=lambda _: None, resume=False)
    monkeypatch.chdir(tmp_path)
    commands = [["evaluate", str(run.path)], ["train", "--resume", str(run.path), "--fit.steps", "2"]]
    before = run.config.read_text()
    for name, path in {"manifest": phantom, "split": phantom.parent / "split.csv"}.items():
        for command in commands:
            assert main(command) == 2
            told = capsys.readouterr().err
            assert f"data.{name} of {run.path} is data/{name}.csv, which is not there (seen from {tmp_path})" in told
            assert f"into {run.private}, as data.{name}: PATH" in told
        private = yaml.safe_load(run.private.read_text())
        run.private.write_text(yaml.safe_dump(private | {f"data.{name}": str(path)}))
    assert run.config.read_text() == before
    for command in commands:
        assert main(command) == 0


def test_hidden_folders_of_somebody_beside_a_run_are_kept(tmp_path: Path, grader_config: Make) -> None:
    names = [
        ".run.backup.20240101",
        ".run.backup.20240101120000",
        ".run.old.99999999999999",
        ".run.new.4x",
        ".runs.old.1",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("x")
    (tmp_path / f".run.old.{os.getpid()}").mkdir()
    create_run(tmp_path / "run", grader_config(), kind="grader")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "run"])


def test_what_is_started_anew_comes_back_where_the_new_run_never_begins(
    started: RunFolder, grader_config: Make
) -> None:
    before = started.config.read_bytes()
    for moment in ("before the first step", "after it"):
        run = create_run(started.path, grader_config(**{"fit.seed": 9}), kind="grader", force=True, keep_earlier=True)
        assert not (run.path / "metrics.csv").exists()
        with pytest.raises(UserError, match="typo"), earlier_until_begun(run):
            if moment == "after it":
                (run.path / "metrics.csv").write_text("step,name,value\n")
                run.checkpoints.folder.mkdir()
            raise UserError("typo")
        assert [path.name for path in started.path.parent.iterdir()] == ["run"]
        assert (started.config.read_bytes() == before) is (moment == "before the first step")


def test_a_mistake_in_a_forced_command_costs_no_finished_run(trained_run: RunFolder, tmp_path: Path, capsys) -> None:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "runs" / "base")))
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    options = [
        "--runs",
        str(tmp_path / "runs"),
        "--name",
        "base",
        "--force",
        "--data.manifest",
        str(tmp_path / "typo.csv"),
    ]
    assert main(["train", *options]) == 2
    assert "typo.csv" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files} == files
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["base"]
