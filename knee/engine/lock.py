"""The lock that excludes a second process from a run folder."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Any

from knee.errors import UserError
from knee.nn.processes import is_first


class RunLock:
    """Excludes a second process from a run folder while the first is alive; a dead process holds no lock.

    It is a file lock of the operating system, so no process number is stored, which another process could get later.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "local" / "lock"
        self._file: Any = None

    def __enter__(self) -> None:
        if not is_first():  # of processes that train together, the first one has the lock
            return
        try:
            import fcntl
        except ImportError:  # this system has no file locks
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                f"another process is training in {self._path.parent.parent}; wait for it, or give this run another --name"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # a file system without locks
                raise
        # Forked data-loading processes must not keep the lock when this process is killed.
        _held.add(self._file)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            _held.discard(self._file)
            self._file.close()


_held: weakref.WeakSet[Any] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked process: close the lock files; the parent process keeps the locks."""
    for file in list(_held):
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
