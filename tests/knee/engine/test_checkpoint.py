"""Checkpoints: whole or not there, checked when read; what is damaged is told, and the one before it taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from knee.engine.checkpoint import Checkpoints
from knee.errors import Faults, UserError

Nets = Callable[..., nn.Module]
Save = Callable[..., Path]


def steps(checkpoints: Checkpoints) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in checkpoints.folder.glob("step_*"))


def test_what_is_saved_is_loaded(checkpoints: Checkpoints, save: Save, small_grader: Nets) -> None:
    save(5, seed=4)
    found, damaged = checkpoints.latest()
    assert found is not None
    assert (found.step, damaged, found.state["precision"]) == (5, [], "fp32")
    network = small_grader(seed=9)
    found.load_network("student", network)
    wanted = small_grader(seed=4).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())


def test_state_is_json_that_a_person_can_read(save: Save) -> None:
    folder = save(5)
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 5
    assert set(state["sha256"]) == {path.name for path in folder.glob("*.safetensors")}
    assert not [path for path in folder.iterdir() if path.suffix not in (".json", ".safetensors")]


def test_last_two_and_the_best_are_kept(checkpoints: Checkpoints, save: Save) -> None:
    for step in range(1, 4):
        save(step)
    checkpoints.mark_best(2, "kappa", 0.5)
    for step in range(4, 8):
        save(step)
    assert steps(checkpoints) == [2, 6, 7]
    assert checkpoints.best().step == 2
    checkpoints.mark_best(7, "kappa", 0.6)
    assert steps(checkpoints) == [6, 7]


def test_best_is_not_named_where_it_was_never_saved(checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    checkpoints.mark_best(3, "kappa", 0.5)
    assert checkpoints.best().step == 1


def test_nothing_saved_yet(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() == (None, [])
    assert checkpoints.best() is None


@pytest.mark.parametrize("moment", ["save_file", "write_json", "os.fsync", "rename"])
def test_stopped_at_any_moment_of_writing_leaves_the_one_before(
    moment: str, checkpoints: Checkpoints, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if moment == "rename":
            patched.setattr(Path, "rename", killed)
        else:
            patched.setattr(moment if "." in moment else f"knee.engine.checkpoint.{moment}", killed)
        with pytest.raises(Killed):
            save(2)
    assert checkpoints.latest()[0].step == 1
    save(3)
    assert steps(checkpoints) == [1, 3]
    assert not list(checkpoints.folder.glob(".writing*"))


def test_full_disk_is_reported_and_frees_what_was_written(
    checkpoints: Checkpoints, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("knee.engine.checkpoint._sync", full)
        with pytest.raises(UserError, match=r"checkpoint of step 2 cannot be written .*No space left.*--resume"):
            save(2)
    assert checkpoints.latest()[0].step == 1
    assert not list(checkpoints.folder.glob(".writing*"))


def test_full_disk_at_the_first_checkpoint_is_told_as_such(
    checkpoints: Checkpoints, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoints.begin()
    monkeypatch.setattr("knee.engine.checkpoint._write", full)
    with pytest.raises(
        UserError, match=r"No space left.*it is the first one: fix this, then --resume starts from step 0"
    ):
        save(2)
    assert checkpoints.none_yet


@pytest.mark.parametrize("moment", ["save_file", "write_json", "os.fsync", "rename", "unlink"])
def test_a_kill_in_the_first_checkpoint_is_told_from_checkpoints_that_were_removed(
    moment: str, checkpoints: Checkpoints, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not checkpoints.none_yet, "nothing began"
    checkpoints.begin()
    assert checkpoints.none_yet

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        place = f"pathlib.Path.{moment}" if moment in ("rename", "unlink") else moment
        patched.setattr(place if "." in place else f"knee.engine.checkpoint.{place}", killed)
        save(1)
    whole = steps(checkpoints) == [1]
    assert checkpoints.none_yet is not whole
    checkpoints.begin()
    assert checkpoints.none_yet is not whole
    save(2)
    assert not checkpoints.none_yet
    for folder in checkpoints.folder.glob("step_*"):
        shutil.rmtree(folder)
    assert not checkpoints.none_yet, "they were there"
    assert list(checkpoints.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["student.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "empty"])
def test_damaged_newest_falls_back_and_says_so(name: str, damage: str, checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    path = save(2) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes({"cut": bytes(content[:-20]), "bit": bytes(content), "empty": b""}[damage])
    found, damaged = checkpoints.latest()
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "step_00000002" in damaged[0]


def test_all_damaged_is_refused_with_all_reasons(checkpoints: Checkpoints, save: Save) -> None:
    for step in (1, 2):
        (save(step) / "student.safetensors").write_bytes(b"x")
    with pytest.raises(Faults, match="no checkpoint is valid; restore one from a copy") as caught:
        checkpoints.latest()
    assert len(caught.value.faults) == 2


def test_damaged_best_names_the_way_out(checkpoints: Checkpoints, save: Save) -> None:
    for step in (1, 2):
        save(step)
    checkpoints.mark_best(1, "kappa", 0.5)
    (checkpoints.folder / "step_00000001" / "student.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"step_00000001.*damaged.*use the newest valid one with --checkpoint last"):
        checkpoints.best()
    assert checkpoints.latest()[0].step == 2


def test_what_killed_writers_left_is_removed(checkpoints: Checkpoints, save: Save) -> None:
    """Also of one that had this process's number."""
    for process in (os.getpid(), 999_999_999):
        for left in (f".writing_00000001_{process}", f".writing_00000001_{process}_old"):
            (checkpoints.folder / left).mkdir(parents=True)
            (checkpoints.folder / left / "student.safetensors").write_bytes(b"x")
        (checkpoints.folder / f".best.json.{process}").write_text("{")
    save(1)
    save(1)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_00000001"]
    assert checkpoints.latest()[1] == []


def test_forgetting_drops_later_ones_and_the_note_of_a_later_best(checkpoints: Checkpoints, save: Save) -> None:
    for step in (1, 2):
        save(step)
    checkpoints.mark_best(2, "kappa", 1.0)
    checkpoints.forget_after(1)
    assert steps(checkpoints) == [1]
    assert checkpoints.best().step == 1


def test_damaged_note_of_the_best_is_told(checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    (checkpoints.folder / "best.json").write_text("{")
    with pytest.raises(UserError, match=r"best\.json cannot be read .*remove it"):
        checkpoints.best()
