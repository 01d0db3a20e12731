"""``python -m dcmt`` is the command line: same arguments, same exit code."""

from __future__ import annotations

import runpy
import sys

import pytest


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_module_ends_with_the_code_of_the_command_line(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcmt.cli.main", lambda: code)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dcmt", run_name="__main__")
    assert ended.value.code == code


def test_the_arguments_reach_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dcmt", "no-such-command"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dcmt", run_name="__main__")
    assert ended.value.code == 2
    assert "no-such-command" in capsys.readouterr().err
