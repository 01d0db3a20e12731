"""Messages whose reader goes away: the work goes on, and its exit code says whether it is done."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcmt.cli import main


@contextlib.contextmanager
def nobody_reads() -> Iterator[None]:
    """Standard output and error are pipes whose reader is gone."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as streams:
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.close(reader)
            setattr(sys, name, streams.enter_context(os.fdopen(writer, "w", buffering=1)))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def options(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested values as options of the command line."""
    found = []
    for name, value in values.items():
        found += (
            options(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"--{prefix}{name}={json.dumps(value)}"]
        )
    return found


def test_training_goes_on_when_nobody_reads(grader_values: dict[str, Any], tmp_path: Path) -> None:
    given = options(grader_values | {"fit": grader_values["fit"] | {"steps": 4}})
    given = [option.replace('"', "") for option in given]
    with nobody_reads():
        assert main(["train", *given, f"--runs={tmp_path}", "--name=run"]) == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000004" / "state.json").read_text())
    assert state["step"] == 4


def test_a_pipe_that_breaks_elsewhere_is_no_success(
    grader_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("dcmt.train.train_grader", broken)
    given = [option.replace('"', "") for option in options(grader_values)]
    with nobody_reads():
        assert main(["train", *given, f"--runs={tmp_path}", "--name=run"]) == 2
