"""The run folder: its files, how it is made, and how it is opened.

Files outside ``local/`` name cases by salted hashes and can be shared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from knee.engine.checkpoint import Checkpoints
from knee.errors import UserError
from knee.grades import shipped_grade_sets
from knee.images.negatives import SIDE
from knee.io.files import moved_into_place, typed
from knee.io.plain import check_plain, read_array, shown
from knee.io.unique_yaml import read_unique

log = logging.getLogger(__name__)
PRIVATE = "(in local/paths.yaml)"
UNTRAINED = ("zeroshot", "probe")
"""Kinds of run without training."""
_PATHS = ("runs", "data.manifest", "data.split", "data.cache", "data.targets", "model.weights", "model.start")
_MOST_YAML_BYTES = 1 << 18
_FILE_SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".npy", ".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration without its paths."""
        return self.path / "config.yaml"

    @property
    def private(self) -> Path:
        """The paths of the configuration."""
        return self.local / "paths.yaml"

    @property
    def local(self) -> Path:
        """Files that name images and patients; must not be shared."""
        return self.path / "local"

    @property
    def verdicts(self) -> Path:
        """The readers' verdicts, with their names and comments; must not be shared."""
        return self.local / "verdicts.csv"

    @property
    def figures(self) -> Path:
        """Figures of the last evaluation."""
        return self.path / "figures"

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def grade_set(self) -> Path:
        """A copy of the grade set at the time of training."""
        return self.path / "grade_set.yaml"

    @property
    def template_path(self) -> Path:
        """The mean knee of all images, used to detect negatives; a thumbnail that shows no single patient."""
        return self.path / "template.npy"

    def template(self) -> NDArray[np.float32] | None:
        """The mean knee; None if negatives are not detected. Raises UserError if the file is not valid."""
        if not self.template_path.exists():
            return None
        try:
            template = read_array(self.template_path)
            if template.shape != (SIDE, SIDE) or template.dtype != np.float32 or not np.isfinite(template).all():
                raise ValueError(f"it is not {SIDE} × {SIDE} finite numbers")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.template_path} is not the mean of the training images ({error}); restore the run's own file"
            ) from error
        return template

    def metrics(self, split: str) -> Path:
        """``metrics_SPLIT.json``."""
        return self.path / f"metrics_{split}.json"

    def predictions(self, split: str) -> Path:
        """``local/predictions_SPLIT.csv``."""
        return self.local / f"predictions_{split}.csv"


def create_run(path: Path, config: Any, *, kind: str) -> RunFolder:
    """Make a new run folder and write the resolved config; if ``path`` exists, it becomes PATH-2, PATH-3 and so on.

    Runs are never overwritten, but an empty folder is used. Raises UserError if no folder can be made.
    """
    number = 1
    while not _claimed(taken := path if number == 1 else path.with_name(f"{path.name}-{number}")):
        number += 1
    if number > 1:
        log.info(f"{path} exists already: this run is {taken}")
    run = RunFolder(taken)
    run.local.mkdir()
    run.local.chmod(0o700)
    _write_config(run, config, kind=kind)
    return run


def _claimed(path: Path) -> bool:
    """Whether the folder was made here, or is empty. Only one of two concurrent processes can make it."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    return True


@contextmanager
def removed_unless_begun(run: RunFolder, *, new: bool = True) -> Iterator[None]:
    """Around the training of a new run: remove the folder if it fails before its first step, as for a missing manifest."""
    try:
        yield
    except BaseException:
        if new and not (run.path / "metrics.csv").exists() and not (run.path / "checkpoints").exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def keep_config(run: RunFolder, config: Any) -> None:
    """Store the changed config of a resumed run, so that resuming it again uses the same changes.

    The caller holds the run's lock. Without changes nothing is written.
    """
    kind = _read_yaml(run.config)["kind"]
    if _config_values(config, kind=kind) != (_read_yaml(run.config), _read_yaml(run.private)):
        _write_config(run, config, kind=kind)


def _config_values(config: Any, *, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The contents of ``config.yaml`` and ``local/paths.yaml``."""
    public, private = split_private(_plain(dataclasses.asdict(config)))
    return {"kind": kind, **public}, private


def _write_config(run: RunFolder, config: Any, *, kind: str) -> None:
    public, private = _config_values(config, kind=kind)
    _write_yaml(run.private, private)
    run.private.chmod(0o600)
    _write_yaml(run.config, public)


def is_trained(kind: str) -> bool:
    """Whether a grader's run of this kind used the training images, as all kinds except zero-shot do."""
    return kind != "zeroshot"


def open_run(path: str | Path) -> tuple[RunFolder, dict[str, Any]]:
    """An existing run folder and its config as plain values, with its ``kind``. Raises UserError.

    The folder may be untrusted, so links in it and values that no config holds (``check_plain``) are refused. A custom grade
    set is read from the run's copy, since its original file may have been moved or changed.
    """
    run = RunFolder(Path(path))
    if not run.config.is_file():
        raise UserError(
            f"{path} is not a run folder: it has no config.yaml; runs are in runs/ or in the folder given by --runs"
        )
    refuse_links(run.path)
    for file in (run.config, run.private, run.grade_set):
        if file.is_file() and file.stat().st_size > _MOST_YAML_BYTES:
            raise UserError(
                f"{file} has {file.stat().st_size:,} bytes, too many for such a file; restore the run's own file"
            )
    values = _read_plain(run.config)
    if not isinstance(values.get("kind"), str):
        raise UserError(f"{run.config} is not the config of a run (no kind)")
    private = _read_plain(run.private) if run.private.is_file() else {}
    for name, value in private.items():
        if not isinstance(value, str):
            raise UserError(
                f"{run.private}: {name} is {shown(value)}, not a path; write the path, or leave the line out"
            )
    if run.grade_set.is_file():
        private["data.grade_set"] = str(run.grade_set)
    for name, value in private.items():
        section, _, option = str(name).rpartition(".")
        part = values.get(section) if section else values
        if isinstance(part, dict) and part.get(option) == PRIVATE:
            part[option] = value
    return run, values


def refuse_links(folder: Path) -> None:
    """Raises UserError if a folder contains a link, or anything else that is neither a file nor a folder.

    Reading, writing and removing could follow a link out of the folder. The folder itself may be a link.
    """
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    copied = typed(folder.with_name(f"{folder.name}-copy"))
                    raise UserError(
                        f"{entry.path!r} is a link, which is not followed out of a run folder; if you trust the run, put "
                        f"the file itself there, or copy the run: cp -rL {typed(folder)} {copied}"
                    )
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(f"{entry.path!r} is neither a file nor a folder; remove it from the run folder")


def require_paths(run: RunFolder, config: Any, *names: str) -> None:
    """Raises UserError if a path of a run's config, by dotted name, does not exist; the error names the file to fix.

    Paths are stored as they were typed, so a relative path is only valid in the folder where the run was started. The run may
    come from a stranger, so the manifest that it names is reported, and one in the run folder itself is refused: its sender
    would have chosen which files of this machine are read as images.
    """
    for name in names:
        value = attrgetter(name)(config)
        if not _is_a_path(name, value) and not _looks_like_a_path(value):
            continue
        if not os.path.lexists(value):
            raise UserError(
                f"{name} of {run.path} is {value}, which does not exist (seen from {Path.cwd()}); change to the folder in "
                f"which the run was started, or write the current path into {run.private}, as {name}: PATH"
            )
        if not os.path.isfile(value):  # noqa: PTH113  Reading a pipe or device would never end; a closed folder must not raise
            raise UserError(
                f"{name} of {run.path} is {value}, which is not a readable file; write the path of the file into "
                f"{run.private}, as {name}: PATH"
            )
        if name == "data.manifest":
            _report_manifest(run, Path(value), config.data.cache)


def _report_manifest(run: RunFolder, manifest: Path, cache: str) -> None:
    if manifest.resolve().is_relative_to(run.path.resolve()):
        raise UserError(
            f"data.manifest of {run.path} is {manifest}, which is in the run folder itself, so whoever sent the run chose the "
            f"images; check it, move it out of the run folder, and write its path into {run.private}"
        )
    log.info(f"data, by {run.private}: {manifest}" + (f", cache {cache}" if cache else ""))


def split_private(values: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """A config's plain values without its paths, and those paths by dotted name.

    Folder names may contain names of people and projects, so paths stay in ``local/``; names of a model hub are not paths.

    >>> split_private({"data": {"manifest": "/home/jo/knees.csv", "image_size": 96}})
    ({'data': {'manifest': '(in local/paths.yaml)', 'image_size': 96}}, {'data.manifest': '/home/jo/knees.csv'})
    """
    public: dict[str, Any] = {}
    private: dict[str, str] = {}
    for name, value in values.items():
        dotted = prefix + name
        if isinstance(value, dict):
            public[name], inner = split_private(value, f"{dotted}.")
            private |= inner
        elif isinstance(value, str) and value and (_is_a_path(dotted, value) or _looks_like_a_path(value)):
            public[name], private[dotted] = PRIVATE, value
        else:
            public[name] = value
    return public, private


def _is_a_path(option: str, value: str) -> bool:
    return option in _PATHS or (option == "data.grade_set" and value not in shipped_grade_sets())


def _looks_like_a_path(value: str) -> bool:
    if value.startswith(("hf-hub:", "hf_hub:")):
        return False
    return "/" in value or "\\" in value or value.lower().endswith(_FILE_SUFFIXES)


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    with moved_into_place(path) as scratch:
        scratch.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _read_plain(path: Path) -> dict[str, Any]:
    """The values of a YAML file of the run folder, checked for types and sizes. Raises UserError."""
    values = _read_yaml(path)
    try:
        check_plain(values, finite=False)
    except ValueError as error:
        raise UserError(f"{path} is not valid: {error}; restore the run's own file") from error
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values, duplicates = read_unique(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if duplicates:
        raise UserError(f"{path} {duplicates[0]}")
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold named values")
    return values


def other_split(state: Mapping[str, Any], split: Path) -> bool:
    """Whether a checkpoint was trained with another split than the file, whose test images it may have been trained on."""
    trained_with = state.get("split_sha256")
    return trained_with is not None and trained_with != file_hash(split)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, shortened to 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
