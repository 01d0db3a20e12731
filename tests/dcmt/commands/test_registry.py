"""Every command is registered in one way, and its function is there."""

from __future__ import annotations

import argparse
import inspect

import pytest

import dcmt.commands.options
import dcmt.commands.review.options  # noqa: F401
from dcmt.commands.registry import COMMANDS, RESEARCH, Command, find_config_command, make_parser


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_the_function_of_a_command_is_there_and_takes_one_argument(command: Command) -> None:
    (only,) = inspect.signature(command.function()).parameters.values()
    assert only.name == ("arguments" if command.takes_config else "options")


def test_commands_that_take_a_config_are_found_by_their_words() -> None:
    assert {name for name, one in COMMANDS.items() if one.takes_config} == {
        "cache",
        "train",
        "segment train",
        "zeroshot",
        "probe",
        "self-train",
    }
    for given, name in (
        (["train", "--name", "a"], "train"),
        (["segment", "train"], "segment train"),
        (["segment", "predict", "run"], None),
        (["predict", "train"], None),
        ([], None),
    ):
        found = find_config_command(given)
        assert (found and found.name) == name


def test_parsed_options_hold_their_command() -> None:
    options = make_parser().parse_args(["review", "sanity", "runs/a", "--steps", "3"])
    assert isinstance(options, argparse.Namespace)
    assert options.command is COMMANDS["review sanity"]
    assert (str(options.run), options.steps) == ("runs/a", 3)


def test_every_help_ends_with_what_it_is_not_for(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        if command.takes_config:
            continue
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args([*name.split(), "--help"])
        assert ended.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "not for diagnosis" in printed, name
    assert "not for diagnosis" in RESEARCH
