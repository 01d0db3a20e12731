"""One process at a time reads and rewrites a table: two that do so at once would lose the rows of one."""

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
    """Hold the system's lock on a folder, waiting for another process to let go of it; nothing is written.

    A process that ends holds nothing. On systems and network drives without such locks nothing is held. Raises UserError
    where another process keeps it for ``patience`` seconds.
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
