"""The run folder: what a run leaves behind, how it is made, and how it is opened again.

Everything outside ``local/`` names cases by salted hashes and can be shown to others.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from knee.engine.checkpoint import Checkpoints
from knee.engine.lock import RunLock
from knee.errors import UserError
from knee.grades import shipped_grade_sets
from knee.io.files import moved_into_place
from knee.io.unique_yaml import read_unique

Config = TypeVar("Config")
PRIVATE = "(in local/paths.yaml)"
_RESUMED = ("grader", "segmenter")
UNTRAINED = ("zeroshot", "probe")
"""Kinds of run that no loop trains."""
_KINDS = (*_RESUMED, *UNTRAINED)
_LOCAL_BEFORE_STEP_1 = ("paths.yaml", "lock", "rejected.csv", "split.csv", "cases.csv")
_BEFORE_STEP_1 = {
    "config.yaml",
    "grade_set.yaml",
    "template.npy",
    "local",
    *(f"local/{name}" for name in _LOCAL_BEFORE_STEP_1),
}
_SCRATCH = re.compile(r"(local/)?\.[\w.]+\.part|local/\.case_salt(\.\w+)?")
"""What a killed process leaves of writing one of them, and the salt of the case names."""
_PATHS = ("runs", "data.manifest", "data.split", "data.cache", "model.weights", "model.start")
_FILE_SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".npy", ".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, its paths left out."""
        return self.path / "config.yaml"

    @property
    def private(self) -> Path:
        """The paths of the configuration."""
        return self.local / "paths.yaml"

    @property
    def local(self) -> Path:
        """What names images and patients; not to be shared."""
        return self.path / "local"

    @property
    def verdicts(self) -> Path:
        """The readers' verdicts: their names and comments stay with the data."""
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
        """The grades it was trained on, as they were then."""
        return self.path / "grade_set.yaml"

    @property
    def template_path(self) -> Path:
        """The mean knee of all images, by which negatives are told; a thumbnail of an average, nobody's image."""
        return self.path / "template.npy"

    def template(self) -> NDArray[np.float32] | None:
        """The mean knee; None where negatives are not looked for."""
        return np.load(self.template_path, allow_pickle=False) if self.template_path.exists() else None

    def metrics(self, split: str) -> Path:
        """``metrics_SPLIT.json``."""
        return self.path / f"metrics_{split}.json"

    def predictions(self, split: str) -> Path:
        """``local/predictions_SPLIT.csv``."""
        return self.local / f"predictions_{split}.csv"


def create_run(path: Path, config: Any, *, kind: str, force: bool = False, keep_earlier: bool = False) -> RunFolder:
    """Make a new run folder and write the resolved config. Refuses a folder that holds anything, unless forced.

    A run that ended before its first step (a fault in the data, say) is started anew without being asked. What is not a
    run folder is never removed, nor is one that holds readers' verdicts. With ``keep_earlier`` the one that is started anew
    is set aside, for ``earlier_until_begun``.
    """
    run = RunFolder(path)
    if path.is_symlink():
        raise UserError(
            f"run folder {path} is a link, and only a folder can be made or started anew; remove the link, or give another "
            f"--name (it leads to {path.resolve()})"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not _is_run(run):
            raise UserError(
                f"{path} exists already and is not a run folder (no config.yaml of a run beside a folder local), so it is not "
                "removed, not by --force either; give another --name"
            )
        if not force and not _never_started(run):
            go_on = f", go on with it by --resume {path}" if kind in _RESUMED else ""
            raise UserError(
                f"run folder {path} exists already; give another --name{go_on}, or start it anew by --force (its contents are "
                "then removed)"
            )
        if os.path.lexists(run.verdicts):
            raise UserError(
                f"{run.verdicts} holds readers' verdicts, which nothing brings back, so the run folder is not removed, not by "
                "--force either; give another --name, or move that file elsewhere (or remove it) first"
            )
        with RunLock(path):  # refuses to remove what another process is writing
            _remove_leftovers(path)
            path.rename(_set_aside(path))  # gone at once, whenever a kill comes
            if not keep_earlier:
                _remove_leftovers(path)
    else:
        _remove_leftovers(path)
    aside = RunFolder(path.with_name(f".{path.name}.new.{os.getpid()}"))
    aside.local.mkdir(parents=True)
    aside.local.chmod(0o700)
    _write_config(aside, config, kind=kind)
    try:
        # Moved into place whole: a kill must not leave a folder that is neither a run nor free.
        aside.path.rename(path)
    except OSError as error:
        shutil.rmtree(aside.path)
        raise UserError(f"run folder {path} was made by another process just now; give another --name") from error
    return run


def keep_config(run: RunFolder, config: Any) -> None:
    """Write the config of a run that goes on with changes, so that the next resuming goes on with them, too.

    The caller holds the run's lock. Without changes nothing is written.
    """
    kind = _read_yaml(run.config)["kind"]
    if _config_values(config, kind=kind) != (_read_yaml(run.config), _read_yaml(run.private)):
        _write_config(run, config, kind=kind)


def _config_values(config: Any, *, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What ``config.yaml`` and ``local/paths.yaml`` hold."""
    public, private = split_private(_plain(dataclasses.asdict(config)))
    return {"kind": kind, **public}, private


def _write_config(run: RunFolder, config: Any, *, kind: str) -> None:
    public, private = _config_values(config, kind=kind)
    _write_yaml(run.private, private)
    run.private.chmod(0o600)
    _write_yaml(run.config, public)


@contextmanager
def earlier_until_begun(run: RunFolder) -> Iterator[None]:
    """Around the training of a new run: the run that it took the place of comes back where it ends before its first step.

    A manifest that is not there, say, must not cost what was trained before.
    """
    aside = _set_aside(run.path)
    try:
        yield
    except BaseException:
        if aside.exists() and _never_started(run):
            shutil.rmtree(run.path)
            aside.rename(run.path)
        raise
    finally:
        forget_earlier(run)


def forget_earlier(run: RunFolder) -> None:
    """Remove the run that this one, which begins now, takes the place of."""
    shutil.rmtree(_set_aside(run.path), ignore_errors=True)


def _set_aside(path: Path) -> Path:
    """Where the run folder that is started anew is put."""
    return path.with_name(f".{path.name}.old.{os.getpid()}")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of making or removing this run folder, and nothing of anybody else's."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        made = re.fullmatch(r"\.(?:new|old)\.([0-9]{1,9})", left.name.removeprefix(f".{path.name}"))
        # Our own number: a process before this one had it, as in a container that was started anew.
        if made and (int(made[1]) == os.getpid() or not _alive(int(made[1]))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_run(run: RunFolder) -> bool:
    """Whether ``create_run`` made this folder, not a person who calls a file config.yaml, too."""
    try:
        return _read_yaml(run.config).get("kind") in _KINDS and run.local.is_dir()
    except (OSError, UserError):
        return False


def _never_started(run: RunFolder) -> bool:
    """Whether a run folder holds nothing but what is written before the first step."""
    found = [path.relative_to(run.path).as_posix() for folder in (run.path, run.local) for path in folder.iterdir()]
    return all(name in _BEFORE_STEP_1 or _SCRATCH.fullmatch(name) for name in found)


def is_trained(kind: str) -> bool:
    """Whether a grader's run of this kind learned from the training images: all but the zero-shot one."""
    return kind != "zeroshot"


def open_run(path: str | Path) -> tuple[RunFolder, dict[str, Any]]:
    """An existing run folder and its config as plain values, with its ``kind``. Raises UserError.

    A grade set of the user's own is read from the run's copy: its file may have moved or changed since.
    """
    run = RunFolder(Path(path))
    if not run.config.is_file():
        raise UserError(
            f"{path} is not a run folder: it has no config.yaml; runs are in runs/ unless --runs said otherwise"
        )
    values = _read_yaml(run.config)
    if "kind" not in values:
        raise UserError(f"{run.config} is not the config of a run (no kind)")
    private = _read_yaml(run.private) if run.private.is_file() else {}
    if run.grade_set.is_file():
        private["data.grade_set"] = str(run.grade_set)
    for name, value in private.items():
        section, _, option = str(name).rpartition(".")
        part = values.get(section) if section else values
        if isinstance(part, dict) and part.get(option) == PRIVATE:
            part[option] = value
    return run, values


def require_paths(run: RunFolder, config: Any, *names: str) -> None:
    """Raises UserError where a path of a run's config, by dotted name, leads nowhere; it names the file to mend it in.

    Paths are kept as they were typed, so a relative one leads nowhere from another folder.
    """
    for name in names:
        value = attrgetter(name)(config)
        if _looks_like_a_path(value) and not os.path.lexists(value):
            raise UserError(
                f"{name} of {run.path} is {value}, which is not there (seen from {Path.cwd()}); go to the folder that the run "
                f"was started in, or write where it is now into {run.private}, as {name}: PATH"
            )


def split_private(values: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """A config's plain values with its paths left out, and those paths by dotted name.

    Folders are named after people and projects, so paths stay in ``local/``; names of a model hub are no paths.

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
    """Whether a checkpoint's state is of another split than the file; what it was trained on may be in test there."""
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
