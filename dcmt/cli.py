"""The command line: ``dcmt COMMAND`` and ``train.py``.

Importing this module is quick; what a command needs is imported when it runs. A mistake of the user ends with one clear
message and exit code 2; anything else that escapes is a bug of ours. Commands are registered in ``dcmt.commands.options``.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

from dcmt.commands.registry import find_config_command, make_parser
from knee.errors import UserError
from knee.io.console import discard, escape_unprintable, show_messages

_FORBIDDEN = "choose a place that you may write to"
_NO_FOLDER = "there is a file where a folder is needed, or the other way round; choose another path"
_OF_THE_MACHINE = {
    errno.ENOSPC: "free some space and go on (a run: by --resume)",
    errno.EDQUOT: "free some of your quota and go on (a run: by --resume)",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EPIPE: "a process at the other end went away, so the work is not done; start it again (a run: by --resume)",
    errno.EIO: "the disk or network drive reports an error; check it, then go on (a run: by --resume)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    escape_unprintable()
    show_messages()
    try:
        return _run(given)
    except UserError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        _complain(f"{error.strerror}: {error.filename or 'while writing'}; {_OF_THE_MACHINE[error.errno]}")
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _complain(message: str) -> None:
    """Say on standard error why the command ends, to whoever may still be reading."""
    try:
        print(f"dcmt: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)


def _run(given: list[str]) -> int:
    for module in ("dcmt.commands.options", "dcmt.commands.review.options"):
        importlib.import_module(module)
    found = find_config_command(given)
    if found is not None:
        return found.function()(given[len(found.name.split()) :])
    try:
        options = make_parser().parse_args(given)
    except BrokenPipeError:  # the reader of the help is gone
        discard(sys.stdout)
        return 0
    return options.command.function()(options)  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
