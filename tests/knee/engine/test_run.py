"""The run folder: never overwritten unasked, and free of paths outside local/."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from knee.engine.run import RunFolder, create_run, open_run, removed_unless_begun, split_private
from knee.errors import UserError

Make = Callable[..., GraderConfig]


def test_a_run_is_never_replaced_the_next_one_has_a_number(
    started: RunFolder, grader_config: Make, said: list[str]
) -> None:
    before = {path: path.read_bytes() for path in started.path.rglob("*") if path.is_file()}
    names = [create_run(started.path, grader_config(), kind="grader").path.name for _ in range(3)]
    assert names == ["run-2", "run-3", "run-4"]
    assert said[0] == f"{started.path} exists already: this run is {started.path}-2"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("taken", ["file", "folder", "link to a run", "link to an empty folder", "link to nowhere"])
def test_what_somebody_has_there_stays(taken: str, started: RunFolder, tmp_path: Path, grader_config: Make) -> None:
    path, empty = tmp_path / "mine", tmp_path / "empty"
    empty.mkdir()
    if taken == "file":
        path.write_text("a")
    elif taken == "folder":
        (path / "images").mkdir(parents=True)
    else:
        path.symlink_to({"run": started.path, "folder": empty}.get(taken.split()[-1], tmp_path / "nowhere"))
    assert create_run(path, grader_config(), kind="grader").path == tmp_path / "mine-2"
    assert path.is_symlink() or path.exists()
    assert not any(empty.iterdir())


def test_an_empty_folder_is_free(tmp_path: Path, grader_config: Make) -> None:
    (tmp_path / "run").mkdir()
    assert create_run(tmp_path / "run", grader_config(), kind="grader").path == tmp_path / "run"


@pytest.mark.parametrize("moment", ["mkdir", "write_text", "chmod"])
def test_kill_while_a_run_folder_is_made_costs_its_name_at_most(
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
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    assert open_run(run.path)[1]["kind"] == "grader"
    assert run.path.name == ("run" if moment == "mkdir" else "run-2")


def test_a_new_run_that_never_begins_leaves_no_folder(tmp_path: Path, grader_config: Make) -> None:
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    with pytest.raises(UserError, match="typo"), removed_unless_begun(run):
        raise UserError("typo")
    assert not run.path.exists()


@pytest.mark.parametrize("begun", ["metrics.csv", "checkpoints", "resumed"])
def test_a_run_that_has_begun_or_is_resumed_is_never_removed(begun: str, tmp_path: Path, grader_config: Make) -> None:
    run = create_run(tmp_path / "run", grader_config(), kind="grader")
    with pytest.raises(UserError, match="typo"), removed_unless_begun(run, new=begun != "resumed"):
        if begun != "resumed":
            (run.path / begun).mkdir()
        raise UserError("typo")
    assert run.config.exists()


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
    train_grader(config, run, resume=False)
    monkeypatch.chdir(tmp_path)
    commands = [["evaluate", str(run.path)], ["train", "--resume", str(run.path), "--fit.steps", "2"]]
    before = run.config.read_text()
    for name, path in {"manifest": phantom, "split": phantom.parent / "split.csv"}.items():
        for command in commands:
            assert main(command) == 2
            told = capsys.readouterr().err
            assert f"data.{name} of {run.path} is data/{name}.csv, which does not exist (seen from {tmp_path})" in told
            assert f"into {run.private}, as data.{name}: PATH" in told
        private = yaml.safe_load(run.private.read_text())
        run.private.write_text(yaml.safe_dump(private | {f"data.{name}": str(path)}))
    assert run.config.read_text() == before
    for command in commands:
        assert main(command) == 0


def test_a_mistake_in_the_next_command_costs_no_finished_run(trained_run: RunFolder, tmp_path: Path, capsys) -> None:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "runs" / "base")))
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    options = ["--runs", str(tmp_path / "runs"), "--name", "base", "--data.manifest", str(tmp_path / "typo.csv")]
    assert main(["train", *options]) == 2
    assert "typo.csv" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files} == files
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["base"]


def test_the_manifest_of_a_run_is_named_and_one_inside_the_run_is_refused(
    trained_run: RunFolder, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path / "run")))
    assert main(["attention", str(run.path), "--cases", "1", "--out", str(tmp_path / "out")]) == 0
    assert f"data, by {run.private}: {phantom}\n" in capsys.readouterr().out
    paths = yaml.safe_load(run.private.read_text())
    for inside in (run.local / "manifest.csv", Path(f"{run.path}/../run/local/manifest.csv")):
        shutil.copyfile(phantom, run.local / "manifest.csv")
        run.private.write_text(yaml.safe_dump(paths | {"data.manifest": str(inside)}))
        assert main(["attention", str(run.path), "--cases", "1", "--out", str(tmp_path / "more")]) == 2
        assert "which is in the run folder itself" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()
    assert not (run.local / "cache").exists()
