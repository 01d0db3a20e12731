"""Files that are either whole or absent: written beside their final name, then moved into place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knee.errors import UserError
from knee.tables import refuse_existing


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A scratch name beside ``path`` that takes its place when the block ends well, and vanishes when it fails.

    Raises UserError where ``path`` exists (unless ``force``) and where the disk refuses, full ones included; what was
    at ``path`` before then stays as it was.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    except OSError as error:
        # A writer may put a whole traceback into the message; the system's own reason is further in.
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
            cause = cause.__cause__ or cause.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written ({reason}); free some space or choose another folder") from error
    finally:
        scratch.unlink(missing_ok=True)
