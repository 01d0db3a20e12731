"""Checkpoints: folders ``checkpoints/step_N`` of safetensors files and one JSON file, written completely or not at all.

A checkpoint is written to a temporary folder and renamed when all its files are on disk, so a kill at any moment leaves the
earlier ones intact. Loading it runs no code. ``state.json`` holds readable information and the checksum of every other file.
``best.json`` names the best step. The file ``none_yet`` exists until the first checkpoint is complete.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from knee.engine.device import PRECISIONS
from knee.errors import Faults, UserError
from knee.io.files import write_json
from knee.io.plain import read_json, shown

Network = TypeVar("Network", bound=nn.Module)
_KEPT = 2
_MOST_STEPS = 10**12
_MOST_BYTES = 1 << 36
"""Limit for one file of tensors: a sparse file can be larger than any disk, and would be read to its end."""
_MOST_BUFFER = 1 << 24
_NAME = re.compile(r"step_\d{8,}")
_NONE_YET = "none_yet"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk, with verified checksums."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return _checked_step(self.state["step"])

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16; fp32 if none is recorded, as for an untrained network. Raises UserError for any other."""
        precision = self.state.get("precision", "fp32")
        if precision not in PRECISIONS:
            raise UserError(f"{self.folder}: its state.json names the precision {precision!r}, not fp32, bf16 or fp16")
        return str(precision)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, by name, on the CPU. Raises UserError if there is no such file or it is not valid."""
        path = self.folder / f"{name}.safetensors"
        if path.name not in self.state["sha256"]:
            raise UserError(f"{self.folder} holds no {path.name}: its state.json does not name one")
        try:
            return dict(load_file(path))
        # An untrusted header can make torch or the parser raise almost any exception.
        except Exception as error:
            raise UserError(f"{path} is not a safetensors file ({_short(error)}); nothing else is loaded") from error

    def build_network(self, name: str, build: Callable[[], Network]) -> Network:
        """The network that ``build`` makes, with the tensors saved as ``name``. Raises UserError where they do not fit."""
        self.refuse_other_network(name, build)
        network = build()
        self.load_network(name, network)
        return network

    def refuse_other_network(self, name: str, build: Callable[[], nn.Module]) -> None:
        """Raises UserError if the network of an untrusted config is not the saved one, without memory for its weights."""
        try:
            with torch.device("meta"):
                network = build()
        except Exception:  # A few networks need values while they are built; any other error comes again.
            return
        self._refuse_other_shapes(name, network)

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
        """Check shapes in the header only, before any tensor is in memory. A module may resize its buffers when it loads."""
        path = self.folder / f"{name}.safetensors"
        wanted = {key: list(value.shape) for key, value in network.named_parameters()}
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except Exception:  # reported by ``tensors``
            return
        others = [
            f"{key} is {shape}, not {wanted[key]}" for key, shape in shapes.items() if wanted.get(key, shape) != shape
        ]
        others += [
            f"{key} is {shape}"
            for key, shape in shapes.items()
            if key not in wanted and math.prod(shape) > _MOST_BUFFER
        ]
        others += [f"{key} is missing" for key in wanted if key not in shapes]
        if others:
            raise UserError(
                f"{path} does not fit the network of this run's config: {'; '.join(others[:3])}; was the config changed since?"
            )


class Checkpoints:
    """The checkpoints of one run; the last two and the best one are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Write the file ``none_yet`` if there is no checkpoint yet. Call it before the first row of metrics is written.

        The file distinguishes a run that was killed before its first checkpoint from one whose checkpoints were removed. If
        the file is missing too, the checkpoints count as removed, and the run is not silently restarted from step 0.
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
        """Whether the run has begun but has never had a complete checkpoint."""
        return not self._folders() and (self.folder / _NONE_YET).is_file()

    def save(
        self,
        step: int,
        networks: Mapping[str, nn.Module],
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of ``step``, then remove those that are no longer kept."""
        final = self.folder / _name(step)
        temporary = self.folder / f".writing_{step:08d}_{os.getpid()}"
        self._remove_leftovers()  # also those of a process with the same number, as in a restarted container
        files = {name: _plain(network.state_dict()) for name, network in networks.items()}
        files |= {name: _plain(values) for name, values in tensors.items()}
        try:
            temporary.mkdir(parents=True)
            _write(temporary, files, {**state, "step": step})
            if final.exists():
                final.rename(temporary.with_name(f"{temporary.name}_old"))
            temporary.rename(final)
            _sync(self.folder)
            (self.folder / _NONE_YET).unlink(missing_ok=True)  # only once the first checkpoint is on disk
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)  # The partial checkpoint may be what fills the disk.
            hint = "earlier checkpoints are intact: fix this, then continue with --resume"
            if not self._folders():
                hint = "it is the first one: fix this, then --resume starts from step 0"
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({_short(error)}); {hint}"
            ) from error
        self._prune()
        return final

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Record the checkpoint of ``step`` as the best; does nothing if there is no checkpoint of that step."""
        if self.holds(step):
            write_json(self.folder / "best.json", {"step": step, "metric": metric, "value": value})
            self._prune()

    def forget_after(self, step: int) -> None:
        """Remove checkpoints of later steps, which are damaged and will be written again."""
        for folder in self._folders():
            if folder.name > _name(step):
                shutil.rmtree(folder)
        best = self._best_step()
        if best is not None and best > step:
            (self.folder / "best.json").unlink()

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest valid checkpoint, and the errors of newer ones; None if no checkpoint was ever written.

        Raises Faults if there are checkpoints but none is valid, since silently starting over would discard the run.
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
                summary=f"{self.folder}: no checkpoint is valid; restore one from a copy, or start a run with a new --name:",
            )
        return None, []

    def of_step(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; None if there is none. Raises UserError if it is damaged."""
        return open_checkpoint(self.folder / _name(step)) if self.holds(step) else None

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, valid or damaged."""
        return (self.folder / _name(step)).is_dir()

    def best(self) -> Checkpoint | None:
        """The best checkpoint; the latest if none was marked as best."""
        step = self._best_step()
        if step is None:
            return self.latest()[0]
        try:
            return open_checkpoint(self.folder / _name(step))
        except UserError as error:
            raise UserError(
                f"{error}; it was the best checkpoint: use the newest valid one with --checkpoint last"
            ) from error

    def _best_step(self) -> int | None:
        path = self.folder / "best.json"
        if not path.exists():
            return None
        try:
            return _checked_step(read_json(path)["step"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({_short(error)}); remove it to use the last checkpoint") from error

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob("step_*") if path.is_dir() and _NAME.fullmatch(path.name)]

    def _prune(self) -> None:
        best = self._best_step()
        for folder in sorted(self._folders(), reverse=True)[_KEPT:]:
            if best is None or folder.name != _name(best):
                shutil.rmtree(folder)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove files of a killed process; the run's lock excludes any other writer."""
        for left in self.folder.glob(".writing_*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(".best.json.*"):
            left.unlink(missing_ok=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open one checkpoint folder and verify its checksums. Raises UserError if it is not valid."""
    try:
        state = read_json(folder / "state.json")
        sums, step = _checked_sums(state["sha256"]), _checked_step(state["step"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is not a valid checkpoint: state.json cannot be read ({_short(error)})") from error
    if folder.is_symlink() or (folder / "state.json").is_symlink():
        raise UserError(
            f"{folder} is a link, or its state.json is; links are not followed: copy the folder itself there"
        )
    if folder.name != _name(step):
        raise UserError(
            f"{folder} holds step {step} according to its state.json; rename it to {_name(step)} if that is right"
        )
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
    """Write the safetensors files and ``state.json`` with their checksums, and sync them to disk."""
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
