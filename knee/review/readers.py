"""Names of readers: find spellings of the same name, which would count as two readers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_TITLES = {"dr", "prof", "professor", "md", "mr", "mrs", "ms", "phd"}


def reader_key(name: str) -> tuple[str, ...]:
    """What spellings of one name share: words and numbers, regardless of case, accents, order and titles.

    >>> reader_key("Dr. Smith") == reader_key("dr smith"), reader_key("R 1") == reader_key("r1"), reader_key("R12")
    (True, True, ('12', 'r'))
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    parts = re.findall(r"[^\W\d_]+|\d+", plain.casefold())
    return tuple(sorted(part for part in parts if part not in _TITLES)) or (name,)


def alike_readers(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that may be spellings of one name, in the order given.

    >>> alike_readers(["Dr Smith", "R1", "dr smith"])
    [('Dr Smith', 'dr smith')]
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(reader_key(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def is_unnamed(name: str) -> bool:
    """Whether the name is what a viewer writes for a reader whom it does not know, as OHIF always does.

    >>> is_unnamed("unknown unknown"), is_unnamed("Unknown Smith")
    (True, False)
    """
    return set(reader_key(name)) == {"unknown"}
