"""Checkpoints: folders ``checkpoints/step_N`` of safetensors and one JSON, each whole or not there.

A checkpoint is written under another name and renamed when all its files are on disk, so a kill at any moment leaves the
ones before untouched. Nothing in it runs code when loaded. ``state.json`` holds what a person may want to read, and the
checksum of every other file. ``best.json`` names the best step. ``none_yet`` is there until the first checkpoint is whole.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from knee.engine.device import PRECISIONS
from knee.errors import Faults, UserError
from knee.io.files import write_json
from knee.io.plain import read_json, shown

_KEPT = 2
_MOST_STEPS = 10**12
_MOST_BYTES = 1 << 36
"""Of one file of tensors: a sparse file can claim more than any disk holds, and would be read to its end."""
_MOST_BUFFER = 1 << 24
_NAME = re.compile(r"step_\d{8,}")
_NONE_YET = "none_yet"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk, its checksums verified."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return _checked_step(self.state["step"])

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16; fp32 where none is named, as for an untrained network. Raises UserError for another."""
        precision = self.state.get("precision", "fp32")
        if precision not in PRECISIONS:
            raise UserError(f"{self.folder}: its state.json names the precision {precision!r}, not fp32, bf16 or fp16")
        return str(precision)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, by name, on the CPU. Raises UserError where there is no such file or no tensors in it."""
        path = self.folder / f"{name}.safetensors"
        if path.name not in self.state["sha256"]:
            raise UserError(f"{self.folder} holds no {path.name}: its state.json does not name one")
        try:
            return dict(load_file(path))
        # A header from a stranger can make torch or the parser raise almost anything.
        except Exception as error:
            raise UserError(f"{path} is not a safetensors file ({_short(error)}); nothing else is loaded") from error

    def load_network(self, name: str, network: nn.Module) -> None:
        """Load the weights and buffers of the network saved as ``name``. Raises UserError where they do not fit."""
        self._refuse_other_shapes(name, network)
        tensors = self.tensors(name)
        try:
            network.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{self.folder / name}.safetensors does not fit the network of this run's config: {_short(error)}; was the "
                "config changed since?"
            ) from error

    def _refuse_other_shapes(self, name: str, network: nn.Module) -> None:
        """By the header alone, before any tensor takes memory. A module may size its buffers by what it loads."""
        path = self.folder / f"{name}.safetensors"
        wanted = {key: list(value.shape) for key, value in network.named_parameters()}
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except Exception:  # ``tensors`` tells it
            return
        others = [
            f"{key} is {shape}, not {wanted[key]}" for key, shape in shapes.items() if wanted.get(key, shape) != shape
        ]
        others += [
            f"{key} is {shape}"
            for key, shape in shapes.items()
            if key not in wanted and math.prod(shape) > _MOST_BUFFER
        ]
        if others:
            raise UserError(
                f"{path} does not fit the network of this run's config: {'; '.join(others[:3])}; was the config changed since?"
            )


class Checkpoints:
    """The checkpoints of one run: the last two and the best are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Note that there is no checkpoint yet, where that is so. To be called before the first row of metrics.

        The note tells a run that was killed before its first checkpoint from one whose checkpoints were removed. Where it is
        lost, too, the run counts as the latter, and is not started from step 0 unasked.
        """
        note = self.folder / _NONE_YET
        if self._folders():
            note.unlink(missing_ok=True)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            note.touch()
            _sync(self.folder)

    @property
    def none_yet(self) -> bool:
        """Whether the run began and has never had a whole checkpoint."""
        return not self._folders() and (self.folder / _NONE_YET).is_file()

    def save(
        self,
        step: int,
        networks: Mapping[str, nn.Module],
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of ``step``, then drop those no longer kept."""
        final = self.folder / _name(step)
        aside = self.folder / f".writing_{step:08d}_{os.getpid()}"
        self._remove_leftovers()  # also of a process that had this one's number, as in a container started anew
        files = {name: _plain(network.state_dict()) for name, network in networks.items()}
        files |= {name: _plain(values) for name, values in tensors.items()}
        try:
            aside.mkdir(parents=True)
            _write(aside, files, {**state, "step": step})
            if final.exists():
                final.rename(aside.with_name(f"{aside.name}_old"))
            aside.rename(final)
            _sync(self.folder)
            (self.folder / _NONE_YET).unlink(missing_ok=True)  # not before the first one is on disk
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)  # What was written may be what fills the disk.
            before = "those before it are whole: mend this and go on by --resume"
            if not self._folders():
                before = "it is the first one: mend this, and --resume starts from step 0"
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({_short(error)}); {before}"
            ) from error
        self._prune()
        return final

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Name the checkpoint of ``step`` as the best; nothing where there is none of that step."""
        if self.holds(step):
            write_json(self.folder / "best.json", {"step": step, "metric": metric, "value": value})
            self._prune()

    def forget_after(self, step: int) -> None:
        """Drop checkpoints of later steps than the one gone back to: damaged ones, to be written again."""
        for folder in self._folders():
            if folder.name > _name(step):
                shutil.rmtree(folder)
        best = self._best_step()
        if best is not None and best > step:
            (self.folder / "best.json").unlink()

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and what was wrong with newer ones; None where none was ever written.

        Raises Faults where there are some and none is whole: to start over unasked would throw the run's record away.
        """
        damaged: list[str] = []
        for folder in sorted(self._folders(), reverse=True):
            try:
                return open_checkpoint(folder), damaged
            except UserError as error:
                damaged.append(str(error))
        if damaged:
            raise Faults(
                damaged,
                summary=f"{self.folder}: no checkpoint is whole; put a copy back, or start anew under another --name:",
            )
        return None, []

    def of_step(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; None where there is none. Raises UserError where it is damaged."""
        return open_checkpoint(self.folder / _name(step)) if self.holds(step) else None

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, whole or not."""
        return (self.folder / _name(step)).is_dir()

    def best(self) -> Checkpoint | None:
        """The best checkpoint; the latest where none was marked."""
        step = self._best_step()
        if step is None:
            return self.latest()[0]
        try:
            return open_checkpoint(self.folder / _name(step))
        except UserError as error:
            raise UserError(f"{error}; it was the best, --checkpoint last takes the newest whole one") from error

    def _best_step(self) -> int | None:
        path = self.folder / "best.json"
        if not path.exists():
            return None
        try:
            return _checked_step(read_json(path)["step"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} cannot be read ({_short(error)}); remove it, and the last checkpoint is taken"
            ) from error

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob("step_*") if path.is_dir() and _NAME.fullmatch(path.name)]

    def _prune(self) -> None:
        best = self._best_step()
        for folder in sorted(self._folders(), reverse=True)[_KEPT:]:
            if best is None or folder.name != _name(best):
                shutil.rmtree(folder)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """What a killed writer left; the run's lock keeps any other writer out."""
        for left in self.folder.glob(".writing_*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(".best.json.*"):
            left.unlink(missing_ok=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open one checkpoint folder and verify its checksums. Raises UserError where it is not whole."""
    try:
        state = read_json(folder / "state.json")
        sums, step = _checked_sums(state["sha256"]), _checked_step(state["step"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is no whole checkpoint: state.json cannot be read ({_short(error)})") from error
    if folder.is_symlink() or (folder / "state.json").is_symlink():
        raise UserError(f"{folder} is a link, or its state.json is; a checkpoint is a folder of its own: copy it there")
    if folder.name != _name(step):
        raise UserError(f"{folder} says that it is of step {step}; name it {_name(step)} if so")
    for name, wanted in sums.items():
        path = folder / name
        if path.parent != folder or path.suffix != ".safetensors" or path.is_symlink():
            raise UserError(f"{folder / 'state.json'} names {name!r}, which is not a safetensors file in that folder")
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size / 2**30:.0f} GiB, too much for the tensors of one network"
            )
        if not path.is_file() or _checksum(path) != wanted:
            raise UserError(f"{path} is missing or damaged (its checksum differs from state.json)")
    return Checkpoint(folder, {**state, "sha256": sums, "step": step})


def _plain(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in values.items()}


def _write(folder: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Safetensors and ``state.json`` with their checksums, all of it on disk at the end."""
    for name, values in files.items():
        save_file(dict(values), folder / f"{name}.safetensors")
        _sync(folder / f"{name}.safetensors")
    sums = {f"{name}.safetensors": _checksum(folder / f"{name}.safetensors") for name in files}
    write_json(folder / "state.json", {**state, "sha256": sums})
    _sync(folder)


def _checked_step(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_STEPS:
        raise ValueError(f"step is {shown(value)}, not a number of steps")
    return value


def _checked_sums(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"sha256 is {shown(value)}, not the checksums of the files")
    for name, checksum in value.items():
        if not isinstance(checksum, str):
            raise ValueError(f"sha256.{name:.60} is {shown(checksum)}, not a checksum")
    return dict(value)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
