"""Mistakes of the user: what is wrong and how to fix it, without a traceback."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # errors are quick to import
    from numpy.typing import NDArray


class UserError(Exception):
    """A mistake that a person can fix: the message says where, what was found, and a hint.

    The command line prints the message and ends with exit code 2. Our own bugs raise anything else.
    """


def counted(number: int, name: str) -> str:
    """A number of things, in words that fit one or many.

    >>> counted(1, "fault"), counted(0, "bad row")
    ('1 fault', '0 bad rows')
    """
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def quoted(names: Sequence[str]) -> str:
    """Names with quotation marks around them.

    >>> quoted(["a", "b"])
    "'a', 'b'"
    """
    return ", ".join(f"'{name}'" for name in names)


class Faults(UserError):
    """All faults of one input, reported together, one a line."""

    def __init__(self, faults: Sequence[str], *, summary: str) -> None:
        self.faults = tuple(faults)
        self.summary = summary
        super().__init__("\n".join([summary, *(f"  {fault}" for fault in self.faults)]))


class NotFinite(UserError):
    """A network's output holds NaN or infinity for ``rows`` (their numbers), of a batch of ``size`` images."""

    def __init__(self, rows: NDArray[Any], size: int, *, first: str = "") -> None:
        super().__init__(
            f"the network's output is not finite for {len(rows)} of {size} images (first: {first or f'row {rows[0]}'}); "
            "take an earlier checkpoint (--checkpoint), or train again with fit.precision fp32"
        )
        self.rows = rows
        self.size = size


def require(condition: bool, option: str, value: object, wanted: str, *, infinite: bool = False) -> None:
    """Raises ValueError where an option's value does not hold, or is not finite (unless ``infinite``)."""
    finite = infinite or not isinstance(value, float) or math.isfinite(value)
    if not (condition and finite):
        raise ValueError(f"{option} is {value!r}; it must be {wanted}")
