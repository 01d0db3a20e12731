"""What a person did wrong and how to mend it, told without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that a person can mend: the message says where, what was found, and the way out.

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
