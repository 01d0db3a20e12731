"""What the library logs, on a person's terminal: messages as they are, warnings on standard error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import TextIO

PACKAGES = ("knee", "dcmt", "clip_koa", "segmentation")


class ConsoleHandler(logging.Handler):
    """Prints INFO to standard output and anything worse to standard error.

    The streams are looked up at every message, since tests and notebooks exchange them. A reader that goes away
    (``| head``) does not end the work: what is left to say goes nowhere.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        stream: TextIO = sys.stderr if record.levelno > logging.INFO else sys.stdout
        try:
            stream.write(f"{record.getMessage()}\n")
            stream.flush()
        except BrokenPipeError:
            discard(stream)


def show_messages(level: int = logging.INFO) -> None:
    """Show what the toolkit's packages log, from ``level`` on; calling it again changes the level only."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())


def escape_unprintable() -> None:
    """Letters that the terminal's encoding lacks are written as escapes, so that no command ends because of them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send what is written to a stream, whose reader is gone, nowhere from now on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
