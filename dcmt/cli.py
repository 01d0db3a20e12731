"""The command line: ``dcmt COMMAND`` and ``train.py``.

Importing this module is fast; a command's modules are imported when it runs. A user error gives one clear message and exit
code 2; any other exception is a bug. Commands are registered in ``dcmt.commands.options``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from dcmt.commands.registry import Command, find_config_command, make_parser
from knee.errors import UserError
from knee.io.console import discard, escape_unprintable, show_messages
from knee.io.termination import EXIT_CODE, Terminated, obey_sigterm

_FORBIDDEN = "choose a place that you can write to"
_NO_FOLDER = "there is a file in place of a folder, or a folder in place of a file; choose another path"
_OF_THE_MACHINE = {
    errno.ENOSPC: "free some space and continue (a run: with --resume)",
    errno.EDQUOT: "free some of your quota and continue (a run: with --resume)",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EPIPE: "the process that reads the output ended, so the work is incomplete; start it again (a run: with --resume)",
    errno.EIO: "the disk or network drive reports an error; check it, then continue (a run: with --resume)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    escape_unprintable()
    show_messages()
    try:
        with obey_sigterm():
            return _run(given)
    except UserError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        _complain(f"{error.strerror}: {error.filename or 'while writing'}; {_OF_THE_MACHINE[error.errno]}")
        return 2
    except Terminated:
        _complain("terminated; start it again to go on (a run: with --resume)")
        return EXIT_CODE
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _complain(message: str) -> None:
    """Print to standard error why the command ends, if anything still reads it."""
    try:
        print(f"dcmt: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)


def _run(given: list[str]) -> int:
    for module in (
        "dcmt.commands.options",
        "dcmt.commands.new_patients.options",
        "dcmt.commands.image_text",
        "dcmt.commands.review.options",
    ):
        importlib.import_module(module)
    found = find_config_command(given)
    if found is not None:
        return found.function()(given[len(found.name.split()) :])
    try:
        options = make_parser().parse_args(given)
    except BrokenPipeError:  # the pager of the help was closed
        discard(sys.stdout)
        return 0
    with _with_others(options.command):
        return options.command.function()(options)  # type: ignore[no-any-return]


def _with_others(command: Command) -> contextlib.AbstractContextManager[None]:
    """Together with the other processes of ``torchrun``, if there are any."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext()
    from knee.nn import processes  # imports torch

    if not command.shared:
        processes.refuse_several(f"dcmt {command.name}")
    return processes.joined()


if __name__ == "__main__":
    sys.exit(main())
