"""Documents and arrays from untrusted sources: bounded plain values, or ValueError with the place and the reason."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knee.io.plain import check_plain, read_array, read_json, shown


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_the_largest_values_pass() -> None:
    check_plain({"a": [None, True, "x" * 10_000, 2**63 - 1, -(2**63), 1.5], "b": nested(11), 3: {}})
    check_plain({"minutes": float("inf")}, finite=False)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": {"b": ["x", 2**63]}}, r"a\.b\.1 is a whole number of more than 64 bits"),
        ({"a": "x" * 10_001}, "a is a text of 10,001 letters, more than 10,000"),
        ({"a": "x\0"}, "a is a text with a NUL character"),
        ({"a": float("nan")}, "a is nan, not a finite number"),
        ({"a": datetime.date(2026, 1, 1)}, "a is of the type date, not a text"),
        ({"a": {1.5: 2}}, r"a has the key 1\.5, which is not a name"),
        ({"x\0": 1}, "has the key .*, which is not a name"),
        (nested(14), "nested deeper than 12"),
        ([0] * 1_000_001, "it holds more than 1,000,000 values"),
        ((1, 2), "it is of the type tuple"),
    ],
)
def test_anything_else_is_refused_by_its_place(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_plain(value)


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper than 12"):
        check_plain(endless)


def test_json_is_an_object_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"step": 3, "names": ["ä"]}), encoding="utf-8")
    assert read_json(path) == {"step": 3, "names": ["ä"]}
    refused = {
        "[1]": "not a JSON object",
        "[" * 100_000: "nested too deep",
        '{"a": Infinity}': "a is inf",
        '{"a": ': "Expecting value",
        " " * ((1 << 24) + 1): "16,777,217 bytes, more than 16,777,216",
    }
    for text, reason in refused.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_json(path)


def test_arrays_are_numbers_and_take_no_more_memory_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    numbers = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(path, numbers)
    assert np.array_equal(read_array(path), numbers)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(2, 3)", b"(2, 9)"))
    with pytest.raises(ValueError):
        read_array(path)
    path.write_bytes(data.replace(b"{", b"(", 1))
    with pytest.raises(ValueError):
        read_array(path)
    for content in (np.array(["text"]), np.array([{}], dtype=object), np.ones(3) * 1j):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(ValueError):
            read_array(path)


@pytest.mark.parametrize(
    "value", ["a" * 10**6, 10**5000, nested(900), [1] * 10**6, {"a": nested(50)}], ids=list("abcde")
)
def test_values_are_shortened_whatever_their_length_and_depth(value: Any) -> None:
    assert 0 < len(shown(value)) < 200
