"""Errors that the user can fix: the message says what is wrong and how to fix it, without a traceback."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # errors are quick to import
    from numpy.typing import NDArray


_MOST_OF_A_KIND, _MOST_LINES, _MOST_RANGES = 3, 200, 20
_PLACE = re.compile(r"\b(line|row) ([0-9]+)")
_VARYING = re.compile(r"^[^':]*?(?=: )|'[^']*'|[0-9]+")
"""The parts of a message that differ between errors of one kind."""


class UserError(Exception):
    """An error that the user can fix: the message says where it is, what was found, and gives a hint.

    The command line prints the message and exits with code 2. Bugs of this package raise other exceptions.
    """


def counted(number: int, name: str) -> str:
    """A number with its noun, in the singular or the plural.

    >>> counted(1, "error"), counted(0, "bad row")
    ('1 error', '0 bad rows')
    """
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def quoted(names: Sequence[str]) -> str:
    """Names in single quotation marks, separated by commas.

    >>> quoted(["a", "b"])
    "'a', 'b'"
    """
    return ", ".join(f"'{name}'" for name in names)


def pasted(value: str) -> str:
    """An option's value, quoted so that it can be pasted into a shell.

    >>> print(pasted("2: mild"), pasted("K's grade"))
    '2: mild' 'K'"'"'s grade'
    """
    return "'" + value.replace("'", "'\"'\"'") + "'"


class Faults(UserError):
    """All errors of one input in one report. Where one kind occurs often, the first is shown and the places of the others."""

    def __init__(self, faults: Sequence[str], *, summary: str) -> None:
        self.faults = tuple(faults)
        self.summary = summary
        super().__init__("\n".join([summary, *(f"  {line}" for line in grouped(self.faults))]))


def grouped(faults: Sequence[str]) -> list[str]:
    """Errors as lines; where a kind occurs more than three times, only the first and the places of the others.

    Errors are of one kind if they differ only in numbers, in quoted text, and in a name before the first colon.

    >>> grouped([f"m.csv line {line}: grade 'KL{line}' is unknown" for line in (2, 3, 4, 9)])
    ["m.csv line 2: grade 'KL2' is unknown", '  … and 3 more of this kind, lines 3–4, 9']
    """
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(_VARYING.sub("", fault), []).append(fault)
    lines = []
    for same in kinds.values():
        if len(same) <= _MOST_OF_A_KIND:
            lines += same
            continue
        places = [match for match in map(_PLACE.search, same[1:]) if match]
        where = f", {places[0][1]}s {_ranges([int(match[2]) for match in places])}" if places else ""
        lines += [same[0], f"  … and {len(same) - 1} more of this kind{where}"]
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"… and {len(lines) - _MOST_LINES} more lines"]
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers; consecutive ones are written as a range."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    shown = ", ".join("–".join(map(str, run)) for run in runs[:_MOST_RANGES])
    return f"{shown} and others" if len(runs) > _MOST_RANGES else shown


class NotFinite(UserError):
    """A network's output contains NaN or infinity for the row numbers ``rows`` of a batch of ``size`` images."""

    def __init__(self, rows: NDArray[Any], size: int, *, first: str = "") -> None:
        super().__init__(
            f"the network's output is not finite for {len(rows)} of {size} images (first: {first or f'row {rows[0]}'}); "
            "take an earlier checkpoint (--checkpoint), or train again with fit.precision fp32"
        )
        self.rows = rows
        self.size = size


def require(condition: bool, option: str, value: object, wanted: str, *, infinite: bool = False) -> None:
    """Raises ValueError if ``condition`` is false, or the option's value is not finite (unless ``infinite``)."""
    finite = infinite or not isinstance(value, float) or math.isfinite(value)
    if not (condition and finite):
        raise ValueError(f"{option} is {value!r}; it must be {wanted}")
