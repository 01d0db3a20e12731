"""The options of the commands for image-text runs."""

from __future__ import annotations

import importlib

import pytest

from dcmt.commands.registry import COMMANDS, make_parser


def test_defaults() -> None:
    importlib.import_module("dcmt.commands.image_text")
    options = make_parser().parse_args(["retrieve", "runs/a", "--covariate", "age", "--covariate", "sex"])
    assert options.split == "test"
    assert options.covariate == ["age", "sex"]
    assert not options.show_reports
    assert {"retrieve", "embed"} <= COMMANDS.keys()


def test_an_output_file_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("dcmt.commands.image_text")
    with pytest.raises(SystemExit):
        make_parser().parse_args(["embed", "runs/a", "images"])
    assert "--out" in capsys.readouterr().err
