"""A lock on a folder: if two processes rewrote a table at the same time, the rows of one would be lost."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knee.errors import UserError

_PATIENCE = 60.0


@contextmanager
def folder_lock(folder: Path, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the operating system's lock on a folder, waiting until other processes release it; nothing is written.

    The lock is released when the process ends. On systems and network drives without such locks, there is no lock. Raises
    UserError if another process holds the lock for ``patience`` seconds.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"{folder}: another process is writing there; try again when it has ended"
                    ) from error
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
                    raise
                break
        yield
    finally:
        os.close(handle)
