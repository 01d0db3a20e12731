"""Read a config dataclass from the command line and YAML; each error is one sentence."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from knee.errors import Faults, UserError
from knee.io.plain import shown
from knee.io.unique_yaml import read_unique

Config = TypeVar("Config")
_NUMBER = re.compile(r"[-+]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?")


def read_config(
    kind: type[Config], arguments: Sequence[str], *, program: str, defaults: Config | None = None
) -> Config:
    """A config of class ``kind`` from ``--config FILE`` and overrides such as ``--data.labeled_fraction 0.1``.

    ``defaults`` (a config) replaces the default values of the class. Its values are not parsed again, since they may come from
    an untrusted run folder.

    Raises:
        UserError: an unknown option (near names offered), a value of the wrong type or out of range, an unreadable file.
    """
    from jsonargparse import ArgumentError, Namespace

    for path in config_paths(arguments):
        _check_file(path, kind)
    parser = make_parser(kind, program=program)
    try:
        found: Namespace = parser.parse_args(list(arguments), defaults=defaults is None)
        found.pop("config", None)
        if defaults is not None:
            changed: Config = _replaced(defaults, found.as_dict())
            return changed
        config: Config = kind(**vars(_instantiate(parser, found)))
    except ArgumentError as error:
        raise UserError(_sentence(str(error), kind)) from error
    except (ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return config


def config_from_values(kind: type[Config], values: dict[str, Any], *, where: str) -> Config:
    """A config of class ``kind`` from plain values, as a run folder's config.yaml holds them. Raises UserError.

    The values may be untrusted, so they are not given to a parser that could import classes or read files; each value is
    checked against the type of its field.
    """
    try:
        config: Config = _built(kind(), values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    return config


def _built(default: Any, values: Any, prefix: str = "", top: type[Any] | None = None) -> Any:
    """A config with the given values, including its sections. Raises ValueError, or UserError from the class."""
    top = top or type(default)
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.removesuffix('.') or 'it'} is {shown(values)}, not options such as 'steps: 100'")
    hints, given = get_type_hints(type(default)), {}
    for name, value in values.items():
        if name not in {option.name for option in dataclasses.fields(default)}:
            raise ValueError(_unknown(f"{prefix}{name:.60}" if isinstance(name, str) else shown(name), top))
        before = getattr(default, name)
        if dataclasses.is_dataclass(before):
            given[name] = _built(before, value, f"{prefix}{name}.", top)
        elif fitting := _fitting(hints[name], value):
            given[name] = fitting[0]
        else:
            raise ValueError(f"option {prefix}{name}: expected {_described(hints[name])}, got {shown(value)}")
    return dataclasses.replace(default, **given)


def _fitting(hint: Any, value: Any) -> list[Any]:
    """The value converted for a field of type ``hint``, in a list; an empty list if it has another type."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return [value] if isinstance(value, str) and value in parts else []
    if kind in (Union, UnionType):
        return next((found for part in parts if (found := _fitting(part, value))), [])
    if kind is tuple:
        right = isinstance(value, list | tuple) and len(value) == len(parts)
        found = [_fitting(part, entry) for part, entry in zip(parts, value, strict=True)] if right else [[]]
        return [tuple(entry[0] for entry in found)] if all(found) else []
    if hint is float and (type(value) is int or (isinstance(value, str) and _NUMBER.fullmatch(value))):
        return [float(value)]  # YAML 1.1 reads 1e-5 as text
    return [value] if type(value) is hint else []


def _described(hint: Any) -> str:
    """A field's type in words: ``float or nothing``, ``one of L, R``."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(parts)}"
    if kind is tuple:
        return f"{len(parts)} numbers in brackets"
    if kind in (Union, UnionType):
        return " or ".join(_described(part) for part in parts)
    return "nothing" if hint is type(None) else str(hint.__name__)


def make_parser(kind: type[Any], *, program: str) -> Any:
    """A jsonargparse parser of every option of a config class, with ``--config FILE``."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=program, exit_on_error=False, description=kind.__doc__)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with options; may be repeated, and later options override earlier ones",
    )
    parser.add_class_arguments(kind)
    return parser


def _check_file(path: Path, kind: type[Any]) -> None:
    """Raises UserError or Faults unless the file is YAML with sections of named options."""
    import yaml

    try:
        values, duplicates = read_unique(path.read_text(encoding="utf-8"))
        json.dumps(values, default=str)
    except OSError as error:
        raise UserError(f"--config: {path} cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"--config: {path} is not a YAML file of options: {' '.join(str(error).split())}") from error
    if duplicates:
        raise Faults(duplicates, summary=f"--config: {path} has duplicate entries; keep one of each:")
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} holds {values!r:.80}, not options such as 'fit:' with 'steps: 100' below it")
    for name, value in values.items():
        if dataclasses.is_dataclass(hints.get(name)) and not isinstance(value, dict):
            raise UserError(f"--config: {path}: {name} is {value!r:.80}; write its options below it, indented")
        if isinstance(value, dict) and dataclasses.is_dataclass(hints.get(name)):
            _refuse_empty(path, name, value, hints[name])


def _refuse_empty(path: Path, section: str, values: dict[str, Any], kind: type[Any]) -> None:
    """Raises UserError for an option without a value, if it needs one."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if value is None and name in hints and type(None) not in get_args(hints[name]):
            raise UserError(f"--config: {path}: {section}.{name} is empty; write a value, or leave the line out")


def _instantiate(parser: Any, found: Any) -> Any:
    # Renamed in jsonargparse 4.49; version 5 removes the old name.
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return build(found)


def option_names(kind: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of all options of a config class.

    >>> @dataclasses.dataclass
    ... class Small:
    ...     steps: int = 1
    >>> option_names(Small)
    ['steps']
    """
    names: list[str] = []
    hints = get_type_hints(kind)
    for option in dataclasses.fields(kind):
        name = prefix + option.name
        inner = hints[option.name]
        names += option_names(inner, name + ".") if dataclasses.is_dataclass(inner) else [name]  # type: ignore[arg-type]
    return names


def config_paths(arguments: Sequence[str]) -> list[Path]:
    """The files after each ``--config``, in order; later ones override earlier ones."""
    paths = []
    for number, argument in enumerate(arguments):
        if argument == "--config" and number + 1 < len(arguments):
            paths.append(Path(arguments[number + 1]))
        elif argument.startswith("--config="):
            paths.append(Path(argument.removeprefix("--config=")))
    return paths


def option_of_file(path: Path, name: str) -> str:
    """The text of a top-level option in a YAML file, '' if there is none or the file is not valid, which is reported later."""
    try:
        values, _ = read_unique(path.read_text(encoding="utf-8"))
    except Exception:  # any error of a parser or a disk
        return ""
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, str) else ""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments of a command with a config include --help."""
    return bool({"--help", "-h"} & set(arguments))


def train_help(
    kind_of_config: type[Any], *, program: str, by_grades: bool = True, resumes: bool = True, more: str = ""
) -> str:
    """The help text of a training command; ``by_grades`` false: without a labeled fraction; ``more``: additional lines."""
    fraction = "  --labeled-fraction F   short for --data.labeled_fraction F\n" if by_grades else ""
    resume = "  --resume RUN           continue a run exactly where it stopped\n" if resumes else ""
    return (
        f"{make_parser(kind_of_config, program=program).format_help()}\n"
        "in addition:\n"
        f"{fraction}"
        "  --skip-bad             short for --data.skip_bad true: leave out bad rows and list them in RUN/local/rejected.csv\n"
        f"{resume}"
        f"{more}"
        "\nResearch use only: not a medical device, not for diagnosis."
    )


def _replaced(config: Any, changes: dict[str, Any]) -> Any:
    """A config with some values changed; changes to sections are nested dictionaries.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Small:
    ...     steps: int = 1
    ...     seed: int = 0
    >>> _replaced(Small(steps=3), {"seed": 5})
    Small(steps=3, seed=5)
    """
    given = {}
    for name, value in changes.items():
        before = getattr(config, name)
        given[name] = (
            _replaced(before, value) if dataclasses.is_dataclass(before) and isinstance(value, dict) else value
        )
    return dataclasses.replace(config, **given)


def _sentence(message: str, kind: type[Any]) -> str:
    """jsonargparse's message as one sentence, with similar option names if an option is unknown."""
    flat = " ".join(message.split())
    unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", flat)
    if unknown:
        return _unknown(f"{unknown[1]}.{unknown[2]}", kind)
    unknown = re.search(r"(?:unrecognized arguments: (?:--)?|Option ')([\w.-]+)", flat, re.IGNORECASE)
    if unknown:
        return _unknown(unknown[1], kind)
    wrong = re.search(r'Parser key "([\w.]+)": (.*)', flat)
    if wrong and wrong[1] == "config":
        return f"--config: {wrong[2]}"
    if wrong:
        expected = wrong[2].replace("Expected a ", "expected ").replace("typing.", "")
        plain = re.sub(r"<class .(\w+).>", r"\1", expected)
        plain = re.sub(r"Literal\[(.*?)\]", lambda names: "one of " + names[1].replace("'", ""), plain)
        return f"option {wrong[1]}: " + plain.replace(
            "expected tuple.", "expected numbers in brackets, such as [0.5,99.5]."
        )
    return flat


def _unknown(name: str, kind: type[Any]) -> str:
    names = ["config", *option_names(kind)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near = near or [known for known in names if name.rpartition(".")[2] in known][:3]
    section = name.rpartition(".")[0]
    sections = dict.fromkeys(known.partition(".")[0] + (".…" if "." in known else "") for known in names)
    siblings = [known for known in names if section and known.startswith(section + ".")]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(siblings or sections)}"
    return f"there is no option {name}; {hint}"
