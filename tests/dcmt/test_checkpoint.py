"""Checkpoints: whole or not there, checked when read, and refused with a reason where they are damaged or foreign."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dcmt.checkpoint import Checkpoint, Checkpoints, flatten_optimizer, open_checkpoint, restore_optimizer
from knee.errors import Faults, UserError

Nets = Callable[..., nn.Module]
Save = Callable[..., Path]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def save(checkpoints: Checkpoints, small_grader: Nets) -> Save:
    """Saves a checkpoint of one small network at a step: ``save(3, seed=1)``."""

    def write(step: int, *, seed: int = 0, grades: int = 3) -> Path:
        network = small_grader(seed=seed, grades=grades)
        return checkpoints.save(
            step, {"student": network}, {"random": {"cpu": torch.get_rng_state()}}, {"precision": "fp32"}
        )

    return write


def steps(checkpoints: Checkpoints) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in checkpoints.folder.glob("step_*"))


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, checksum included, as someone who means harm would."""
    (folder / name).write_bytes(content)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))


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
            patched.setattr(moment if "." in moment else f"dcmt.checkpoint.{moment}", killed)
        with pytest.raises(Killed):
            save(2)
    assert checkpoints.latest()[0].step == 1
    save(3)
    assert steps(checkpoints) == [1, 3]
    assert not list(checkpoints.folder.glob(".writing*"))


def test_full_disk_is_told_and_frees_what_was_written(
    checkpoints: Checkpoints, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dcmt.checkpoint._sync", full)
        with pytest.raises(UserError, match=r"checkpoint of step 2 cannot be written .*No space left.*--resume"):
            save(2)
    assert checkpoints.latest()[0].step == 1
    assert not list(checkpoints.folder.glob(".writing*"))


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
    with pytest.raises(Faults, match="no checkpoint is whole; put a copy back") as caught:
        checkpoints.latest()
    assert len(caught.value.faults) == 2


def test_damaged_best_names_the_way_out(checkpoints: Checkpoints, save: Save) -> None:
    for step in (1, 2):
        save(step)
    checkpoints.mark_best(1, "kappa", 0.5)
    (checkpoints.folder / "step_00000001" / "student.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"step_00000001.*damaged.*--checkpoint last takes the newest"):
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


def test_pickle_in_place_of_weights_is_refused_and_does_not_run(save: Save, tmp_path: Path, small_grader: Nets) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(marker),))

    folder = save(1)
    rewrite(folder, "student.safetensors", pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"student\.safetensors is not a safetensors file .*nothing else is loaded"):
        open_checkpoint(folder).load_network("student", small_grader())
    torch.save(Payload(), folder / "student.pt")
    open_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    ],
)
def test_huge_declared_shapes_are_refused_without_taking_memory(header: Any, save: Save) -> None:
    folder = save(1)
    text = json.dumps(header).encode()
    rewrite(folder, "student.safetensors", struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(UserError, match="not a safetensors file"):
        open_checkpoint(folder).tensors("student")


def test_huge_declared_header_is_refused(save: Save) -> None:
    folder = save(1)
    rewrite(folder, "student.safetensors", struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(UserError, match="not a safetensors file"):
        open_checkpoint(folder).tensors("student")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "weights.pkl", ".."])
def test_files_outside_the_folder_or_of_another_kind_are_refused(name: str, save: Save, tmp_path: Path) -> None:
    folder = save(1)
    save_file({"a": torch.zeros(1)}, folder.parent / "outside.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][name] = "0"
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="not a safetensors file in that folder"):
        open_checkpoint(folder)


def test_link_out_of_the_folder_is_refused(save: Save, tmp_path: Path) -> None:
    folder = save(1)
    (folder / "student.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "student.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match="not a safetensors file in that folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("linked", ["folder", "state"])
def test_checkpoint_that_is_a_link_is_refused(linked: str, save: Save, tmp_path: Path) -> None:
    folder = save(1)
    place = folder if linked == "folder" else folder / "state.json"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        open_checkpoint(folder)


def test_sparse_file_of_a_terabyte_is_refused_at_once(save: Save) -> None:
    folder = save(1)
    os.truncate(folder / "student.safetensors", 1 << 40)
    with pytest.raises(UserError, match=r"student\.safetensors has 1024 GiB, too much"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classifier.weight", r"classifier\.weight is \[268435456, 8\], not \[3, 8\]"),
        ("norm.running_mean", r"norm\.running_mean is \[268435456, 8\]"),
        ("anything", r"anything is \[268435456, 8\]"),
    ],
)
def test_other_shapes_are_refused_by_the_header_before_any_tensor_is_read(
    name: str, message: str, save: Save, small_grader: Nets
) -> None:
    """A file of 8 GiB that is as long as it says: its tensors would be read, then refused."""
    folder = save(1)
    text = json.dumps({name: {"dtype": "F32", "shape": [1 << 28, 8], "data_offsets": [0, 1 << 33]}}).encode()
    path = folder / "student.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + (1 << 33))
    foreign = Checkpoint(folder, {"step": 1, "sha256": {path.name: "not looked at here"}})
    with pytest.raises(UserError, match=message):
        foreign.load_network("student", small_grader())


def spoiled_header(header: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A header with one thing changed that a stranger might change."""
    odd = [
        0,
        -1,
        1,
        7,
        1 << 31,
        1 << 62,
        1 << 64,
        1e300,
        "x",
        None,
        [],
        {},
        True,
        [1 << 40, 0],
        "F64",
        "U8",
        "BOOL",
        "F4",
    ]
    changed = json.loads(json.dumps(header))
    name = draw.choice(list(changed))
    place = draw.choice(["name", "entry", "dtype", "shape", "data_offsets", "one of them", "metadata"])
    if place == "name":
        changed[draw.choice(["", "a" * 70_000, "../x", "\0"])] = changed.pop(name)
    elif place == "entry":
        changed[name] = draw.choice(odd)
    elif place == "metadata":
        changed["__metadata__"] = draw.choice(odd)
    elif place == "one of them":
        part = changed[name][draw.choice(["shape", "data_offsets"])]
        part[draw.randrange(len(part))] = draw.choice(odd) if part else None
    else:
        changed[name][place] = draw.choice(odd)
    return dict(changed)


@pytest.mark.parametrize("seed", range(4))
def test_headers_from_a_stranger_are_refused_or_read_with_the_shapes_that_fit(
    seed: int, save: Save, small_grader: Nets
) -> None:
    """A hundred changed headers each, checksums made to fit: a refusal every time, or the network's own shapes."""
    folder = save(1)
    data = (folder / "student.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    draw = random.Random(seed)
    network = small_grader()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    refused = 0
    for _ in range(100):
        text = json.dumps(spoiled_header({k: v for k, v in header.items() if k != "__metadata__"}, draw)).encode()
        rewrite(folder, "student.safetensors", struct.pack("<Q", len(text)) + text + data[8 + length :])
        try:
            open_checkpoint(folder).load_network("student", network)
        except UserError as error:
            assert "student.safetensors" in str(error)
            refused += 1
        assert {name: value.shape for name, value in network.state_dict().items()} == shapes
    assert refused > 70


def test_file_that_is_not_listed_is_not_loaded(save: Save) -> None:
    folder = save(1)
    save_file({"a": torch.zeros(1)}, folder / "extra.safetensors")
    with pytest.raises(UserError, match=r"holds no extra\.safetensors"):
        open_checkpoint(folder).tensors("extra")


def test_wrong_class_count_is_refused_with_both_numbers(save: Save, small_grader: Nets) -> None:
    with pytest.raises(UserError, match=r"does not fit .*classifier.weight.*\[5, 8\].*\[3, 8\]"):
        open_checkpoint(save(1, grades=5)).load_network("student", small_grader(grades=3))


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", '{"step": "x", "sha256": {}}', '{"step": 1, "sha256": []}', "[" * 99_999]
)
def test_state_that_is_not_one_is_refused(content: str, save: Save) -> None:
    folder = save(1)
    (folder / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        open_checkpoint(folder)


def test_folder_that_claims_another_step_is_refused(save: Save) -> None:
    folder = save(1)
    moved = folder.rename(folder.with_name("step_00000009"))
    with pytest.raises(UserError, match="says that it is of step 1"):
        open_checkpoint(moved)


def test_damaged_note_of_the_best_is_told(checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    (checkpoints.folder / "best.json").write_text("{")
    with pytest.raises(UserError, match=r"best\.json cannot be read .*remove it"):
        checkpoints.best()


def test_optimizer_survives_the_way_to_disk(checkpoints: Checkpoints, small_grader: Nets) -> None:
    network = small_grader()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, fused=True)
    network(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    optimizer.step()
    tensors, groups = flatten_optimizer(optimizer)
    checkpoints.save(1, {}, {"optimizer": tensors}, {"groups": groups})
    found = checkpoints.latest()[0]
    other = torch.optim.Adam(network.parameters(), lr=0.5, fused=True)
    restore_optimizer(other, found.tensors("optimizer"), found.state["groups"])
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == [{**group, "betas": tuple(group["betas"])} for group in theirs["param_groups"]]
    for number, entry in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][number][key]) for key, value in entry.items())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_moments_lie_in_memory_as_their_weights_do(kind: Any, checkpoints: Checkpoints, small_grader: Nets) -> None:
    """A fused optimiser does not look at strides: moments of another layout would be given to other weights."""
    network = small_grader().to(memory_format=torch.channels_last)
    options = {"lr": 0.1, "fused": True} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    optimizer = kind(network.parameters(), **options)
    network(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    optimizer.step()
    tensors, groups = flatten_optimizer(optimizer)
    checkpoints.save(1, {}, {"optimizer": tensors}, {})
    other = kind(network.parameters(), **options)
    restore_optimizer(other, checkpoints.latest()[0].tensors("optimizer"), groups)
    for parameter, entry in other.state.items():
        for key, value in entry.items():
            assert torch.equal(value, optimizer.state[parameter][key])
            assert not value.ndim or value.stride() == parameter.stride()


def test_optimizer_of_other_shapes_is_refused(small_grader: Nets) -> None:
    network = small_grader()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 16, 16)).logits.sum().backward()
    optimizer.step()
    tensors, groups = flatten_optimizer(optimizer)
    tensors["0.exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"exp_avg of shape \(7,\)"):
        restore_optimizer(torch.optim.Adam(network.parameters()), tensors, groups)
