"""The lock that keeps a second process out of a run folder."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Any

from knee.errors import UserError


class RunLock:
    """Keeps a second process out of a run folder while the first is alive; a dead process holds nothing.

    The lock is the system's, on a file, so no process number is written that another process could get later.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "local" / "lock"
        self._file: Any = None

    def __enter__(self) -> None:
        try:
            import fcntl
        except ImportError:  # no file locks on this system: nothing to hold
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
        # Processes that load images are forked: they must not hold the lock on when this one is killed.
        _held.add(self._file)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            _held.discard(self._file)
            self._file.close()


_held: weakref.WeakSet[Any] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked process: close the files of the locks, which stay the parent's."""
    for file in list(_held):
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
