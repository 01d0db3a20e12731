"""Check documents and arrays from untrusted sources: plain values of a bounded size, or ValueError with the reason.

Code that reads YAML or JSON from untrusted sources checks it here before it uses any field. So no field needs to handle
dates, infinities, endless numbers, or lists nested a thousand levels deep.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DEEPEST = 12
_LARGEST = 2**63
_LONGEST = 10_000
_MOST_VALUES = 1_000_000
_MOST_BYTES = 1 << 24


def check_plain(values: object, *, finite: bool = True) -> None:
    """Raises ValueError unless ``values`` consists of mappings, lists, text, numbers, true, false and null of bounded size.

    Text has at most 10,000 characters, whole numbers fit 64 bits, nothing is nested deeper than 12; ``finite`` false allows
    infinity and NaN.

    >>> check_plain({"fit": {"steps": 3}})
    >>> check_plain({"fit": {"steps": [10**30]}})
    Traceback (most recent call last):
    ValueError: fit.steps.0 is a whole number of more than 64 bits
    """
    waiting: list[tuple[str, object, int]] = [("", values, 0)]
    seen = 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        if reason := _odd(value, depth, finite=finite):
            raise ValueError(f"{name or 'it'} is {reason}")
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in inner:
            if not isinstance(key, str | int) or (isinstance(value, dict) and _odd(key, 0, finite=True)):
                raise ValueError(f"{name or 'it'} has the key {shown(key)}, which is not a name")
            waiting.append((".".join(filter(None, (name, str(key)[:40]))), entry, depth + 1))


def _odd(value: object, depth: int, *, finite: bool) -> str:
    """Why one value is refused; empty if it is accepted."""
    if isinstance(value, dict | list):
        return f"nested deeper than {_DEEPEST}" if depth > _DEEPEST else ""
    if isinstance(value, str):
        if len(value) > _LONGEST:
            return f"a text of {len(value):,} letters, more than {_LONGEST:,}"
        return "a text with a NUL character" if "\0" in value else ""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int):
        return "" if -_LARGEST <= value < _LARGEST else "a whole number of more than 64 bits"
    if isinstance(value, float):
        return f"{value}, not a finite number" if finite and not math.isfinite(value) else ""
    return f"of the type {type(value).__name__}, not a text, number, list or mapping"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, checked by ``check_plain``. Raises OSError, or ValueError for anything else."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, more than {_MOST_BYTES:,}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    check_plain(value)
    return value


def read_array(path: Path) -> NDArray[Any]:
    """The numbers in a .npy file, at most 16 MiB. Raises OSError, or ValueError for anything else."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, more than {_MOST_BYTES:,}")
    try:
        # Memory-mapped, so that the header's shape cannot allocate more memory than the file has bytes.
        mapped = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "biuf":
            raise ValueError("it does not hold one array of numbers")
        return np.array(mapped)
    except (ValueError, OSError):
        raise
    except Exception as error:  # numpy parses the header as a Python literal, which can raise any exception
        raise ValueError(f"{type(error).__name__}: {error}") from error


def shown(value: object) -> str:
    """A value shortened for a message, whatever its length and depth.

    >>> shown("a" * 300)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not convert whole numbers of more than 4,300 digits to text
        return f"a {type(value).__name__} too long to show"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 62
_SHORT.maxlevel = 3
