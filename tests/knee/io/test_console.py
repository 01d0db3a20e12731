"""What is logged reaches the terminal once, and a reader who goes away ends nothing."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator

import pytest

from knee.io.console import PACKAGES, ConsoleHandler, escape_unprintable, show_messages


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {name: list(logging.getLogger(name).handlers) for name in PACKAGES}
    yield
    for name, handlers in before.items():
        logging.getLogger(name).handlers[:] = handlers


def test_messages_go_to_standard_output_and_warnings_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages()
    show_messages()
    logging.getLogger("knee.engine.fit").info("step 3")
    logging.getLogger("dcmt.trained.loaded").warning("note: 100%")
    logging.getLogger("clip_koa").debug("not shown")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("step 3\n", "note: 100%\n"), "once, however often it is asked for"


def test_other_packages_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages()
    logging.getLogger("somebody.else").info("theirs")
    assert capsys.readouterr().out == ""


def test_a_reader_that_goes_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        handler = ConsoleHandler()
        record = logging.LogRecord("knee", logging.INFO, __file__, 1, "step %d", (1,), None)
        handler.emit(record)
        handler.emit(record)  # goes nowhere, without an error
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        escape_unprintable()
        stream.write("α ≤ 1")
        stream.flush()
        assert raw.getvalue() == b"\\u03b1 \\u2264 1"
