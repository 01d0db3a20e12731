"""Files that are either whole or absent: written beside their final name, then moved into place."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knee.errors import UserError


@contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """A scratch name beside ``path`` that takes its place, on disk, when the block ends well, and vanishes otherwise.

    Raises OSError where the disk refuses; what was at ``path`` before then stays as it was.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of ``moved_into_place(path)``; for a file that no other process is writing."""
    for scratch in path.parent.glob(f".{path.name}.*.part"):
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """``moved_into_place`` for what a person asked for.

    Raises UserError where ``path`` exists (unless ``force``) and where the disk refuses, full ones included.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    try:
        with moved_into_place(path) as scratch:
            yield scratch
    except OSError as error:
        # A writer may put a whole traceback into the message; the system's own reason is further in.
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
    """A path as it is typed into a shell.

    >>> typed(Path("runs/run one"))
    "'runs/run one'"
    """
    return shlex.quote(str(path))


def relative_name(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``, with ``/``; as it is where no relative path leads there (another drive).

    ``folder`` without links: '..' leads out of where a link leads to.

    >>> relative_name(Path("/data/images/1.png"), Path("/data/lists"))
    '../images/1.png'
    """
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raises UserError where ``path`` exists and ``force`` was not asked for."""
    if not force and os.path.lexists(path):
        raise UserError(f"{path}: exists already and is not overwritten; choose another name, or use --force")
