"""Registration of commands, by a decorator on the function that declares a command's options.

    @command("evaluate", "grade a split with student and teacher", runs="dcmt.commands.evaluate:evaluate_command")
    def evaluate(parser): ...

``runs`` names the function that does the work. Its module is imported when the command runs, so that ``--help`` is fast. A
command of two words belongs to a group (``review export``).
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

RESEARCH = "Research use only: not a medical device, not for diagnosis."
GROUPS: dict[str, str] = {}
"""Help text of each group of commands."""
COMMANDS: dict[str, Command] = {}
"""All commands by name, in the order of the help text."""


@dataclass(frozen=True)
class Command:
    """A command: its name, one line of help, the function that declares its options, and the one that runs it."""

    name: str
    text: str
    options: Callable[[argparse.ArgumentParser], None]
    runs: str
    takes_config: bool = False
    """Whether it takes every option of a config; it then gets its arguments as a list."""
    shared: bool = False
    """Whether several processes, started by ``torchrun``, share its images."""
    closing: str = ""
    """The last sentence of its help text."""

    def function(self) -> Callable[[Any], int]:
        """The function that runs it; imports its module."""
        return find_function(self.runs)


def find_function(runs: str) -> Callable[..., Any]:
    """The function "MODULE:NAME"; imports its module only now. So a command may run code of a package above this one."""
    module, _, name = runs.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


Options = Callable[[argparse.ArgumentParser], None]


def command(
    name: str, text: str, *, runs: str, closing: str = RESEARCH, shared: bool = False
) -> Callable[[Options], Options]:
    """Register a command; decorates the function that declares its options."""

    def register(options: Options) -> Options:
        COMMANDS[name] = Command(name, text, options, runs, closing=closing, shared=shared)
        return options

    return register


def config_command(name: str, text: str, *, runs: str) -> None:
    """Register a command that takes every option of a config, and therefore gets its arguments as a list."""
    COMMANDS[name] = Command(name, text, lambda _: None, runs, takes_config=True)


def group(name: str, text: str) -> None:
    """Describe a group of commands of two words."""
    GROUPS[name] = text


def find_config_command(given: Sequence[str]) -> Command | None:
    """The command named by the arguments if it takes every option of a config, else None."""
    for words in (2, 1):
        found = COMMANDS.get(" ".join(given[:words])) if len(given) >= words else None
        if found is not None and found.takes_config:
            return found
    return None


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsed options hold the ``Command`` under ``command``."""
    parser = argparse.ArgumentParser(prog="dcmt", description=f"Grade knee osteoarthritis from few labels. {RESEARCH}")
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    groups: dict[str, Any] = {}
    for name, one in COMMANDS.items():
        first, _, second = name.partition(" ")
        if second and first not in groups:
            members = "|".join(other.partition(" ")[2] for other in COMMANDS if other.startswith(f"{first} "))
            inner = top.add_parser(first, help=GROUPS[first], description=f"{GROUPS[first]}. {one.closing}")
            groups[first] = inner.add_subparsers(required=True, metavar=members)
        where = groups[first] if second else top
        description = f"{one.text[0].upper()}{one.text[1:]}. {one.closing}"
        own = where.add_parser(second or first, help=one.text, description=description, add_help=not one.takes_config)
        one.options(own)
        own.set_defaults(command=one)
    return parser
