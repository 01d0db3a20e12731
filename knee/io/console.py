"""Log output on the terminal: plain messages on standard output, warnings on standard error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import TextIO

PACKAGES = ("knee", "dcmt", "clip_koa", "segmentation", "image_text")


class ConsoleHandler(logging.Handler):
    """Prints INFO to standard output and anything worse to standard error.

    The streams are looked up for every message, because tests and notebooks replace them. If the reader of a pipe ends
    (``| head``), the command continues and further output is discarded.
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
    """Show log messages of the toolkit's packages from ``level`` on; calling it again only changes the level."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())


def escape_unprintable() -> None:
    """Write characters that the terminal's encoding lacks as escapes, so that they do not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Discard all further output to a stream whose reader has ended."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
