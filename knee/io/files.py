"""Atomic file writes: files are written under a temporary name next to their final one, then moved into place."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from knee.errors import UserError

LONGEST_NAME = 255
"""Longest file name, in bytes, that file systems allow."""
_ROOM_FOR_SCRATCH = 40
_FEWEST_TO_LIST = 8
"""Files of one folder from which on its list is read."""
_UNTIDY = re.compile(r"(^|/)\.(/|$)|//|/$", re.MULTILINE)
"""A path that ``Path`` writes in another way."""
_NOT_NORMAL = re.compile(r"(^|/)\.{1,2}(/|$)|//|/$|^$", re.MULTILINE)
"""A path that ``normpath`` changes, or an empty one."""


@contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """A temporary file next to ``path`` that replaces it if the block succeeds, and is removed otherwise.

    Raises OSError if the file cannot be written; an existing file at ``path`` is then unchanged.
    """
    scratch = path.with_name(f".{_scratch_name(path)}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``moved_into_place(path)`` left by killed processes; no other process may be writing it."""
    for scratch in path.parent.glob(f".{glob.escape(_scratch_name(path))}.*.part"):
        scratch.unlink(missing_ok=True)


def _scratch_name(path: Path) -> str:
    """The file's name, or a hash of it if the temporary name would be longer than file systems allow."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_NAME - _ROOM_FOR_SCRATCH else hashlib.sha256(name).hexdigest()[:16]


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """``moved_into_place`` for output files that the user requested.

    Raises UserError if ``path`` exists (unless ``force``) or cannot be written, e.g. because the disk is full.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    try:
        with moved_into_place(path) as scratch:
            yield scratch
    except OSError as error:
        # A writer may put a whole traceback into the message; the system's reason is in a cause of the error.
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
            cause = cause.__cause__ or cause.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written ({reason}); free some space or choose another place") from error


def write_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write a text file, UTF-8. Raises UserError as ``whole_file``."""
    with whole_file(Path(path), force=force) as scratch:
        scratch.write_bytes(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write or replace a JSON file. Raises OSError as ``moved_into_place``."""
    with moved_into_place(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def typed(path: Path) -> str:
    """A path quoted for a shell.

    >>> typed(Path("runs/run one"))
    "'runs/run one'"
    """
    return shlex.quote(str(path))


def relative_name(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder``, with ``/``; unchanged if there is no relative path (another drive).

    ``folder`` must not contain symbolic links, because '..' is the parent of a link's target.

    >>> relative_name(Path("/data/images/1.png"), Path("/data/lists"))
    '../images/1.png'
    """
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()


def normal_paths(paths: list[str]) -> list[str]:
    """``os.path.normpath`` of each path; of a million paths that are normal already, in one look."""
    if os.sep == "/" and not _NOT_NORMAL.search("\n".join(paths)):
        return paths
    return list(map(os.path.normpath, paths))


def paths_below(folder: Path, names: list[str]) -> list[str]:
    """``str(folder / name)`` of each name, '' for none; without as many ``Path`` objects, which are slow, where possible.

    >>> paths_below(Path("data"), ["a/1.png", "", "./a//2.png"]), paths_below(Path("data"), ["a/1.png"])
    (['data/a/1.png', '', 'data/a/2.png'], ['data/a/1.png'])
    """
    given = [name for name in names if name]
    if os.sep == "/" and not _UNTIDY.search("\n".join(given)):
        prefix = str(folder / "x")[:-1]
        return [name if not name or name[0] == "/" else prefix + name for name in names]
    return [str(folder / name) if name else "" for name in names]


def existing_files(paths: Sequence[str]) -> set[str]:
    """Those of the paths that are files in the lists of their folders, which are much faster than a look at each file.

    A path that is missing here may be a file all the same: one of a huge folder, or named in another case.
    """
    wanted = Counter(path.rpartition("/")[0] for path in paths)
    listed: set[str] = set()
    for folder, count in wanted.items():
        if count < _FEWEST_TO_LIST or not folder or os.sep != "/":
            continue
        with suppress(OSError), os.scandir(folder) as entries:
            # Of a folder with many more files only a part is read.
            listed.update(f"{folder}/{entry.name}" for entry in islice(entries, 4 * count) if entry.is_file())
    return listed


def refuse_inputs(target: Path, **inputs: Path | None) -> None:
    """Raises UserError if the file to write is also another file of the command (by role); --force does not allow that.

    Links are followed, so another name of the same file is detected, too.
    """
    for role, path in inputs.items():
        if path is not None and os.path.realpath(path) == os.path.realpath(target):
            read = role.replace("_", " ")
            raise UserError(f"{target}: is also the {read}, so it is not overwritten; choose another name")


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raises UserError if ``path`` exists, unless ``force``."""
    if not force and os.path.lexists(path):
        raise UserError(f"{path}: exists already and is not overwritten; choose another name, or use --force")
