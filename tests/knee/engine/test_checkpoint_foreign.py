"""Checkpoints from strangers: nothing in them runs, asks for memory, leads out of the folder, or passes for what it is not."""

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

from knee.engine.checkpoint import Checkpoint, open_checkpoint
from knee.errors import UserError

Nets = Callable[..., nn.Module]
Save = Callable[..., Path]


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, checksum included, as someone who means harm would."""
    (folder / name).write_bytes(content)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))


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
    with pytest.raises(UserError, match=r"holds step 1 according to its state\.json"):
        open_checkpoint(moved)
