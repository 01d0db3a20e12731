"""YAML texts that expand without end are refused before they do, and ordinary anchors still work."""

import time

import numpy as np
import pytest
import yaml

from knee.io.unique_yaml import read_unique

RNG = np.random.default_rng(3)


def doubling(depth, width, *, merge):
    """``width`` ** ``depth`` values in a few lines."""
    lines = ["m0: &m0 {k0: 1}" if merge else "m0: &m0 [1]"]
    for level in range(1, depth):
        names = ",".join([f"*m{level - 1}"] * width)
        lines.append(f"m{level}: &m{level} " + (f"{{<<: [{names}], k{level}: 1}}" if merge else f"[{names}]"))
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("depth", RNG.integers(3, 60, 3).tolist())
@pytest.mark.parametrize("width", RNG.integers(2, 12, 2).tolist())
def test_nested_anchors_are_refused_at_once(depth, width, merge):
    start = time.process_time()
    with pytest.raises(yaml.YAMLError, match=r"nested or too many anchors \(\*m1\); write the values out"):
        read_unique(doubling(depth, width, merge=merge))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}", "a: &a [&b [*a]]"])
def test_a_part_that_holds_itself_is_refused(text):
    with pytest.raises(yaml.YAMLError, match="nested or too many anchors"):
        read_unique(text)


def test_ordinary_anchors_are_followed():
    found, duplicates = read_unique("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: &c [3]\nd: [*c, *c]\n")
    assert found == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [3], "d": [[3], [3]]}
    assert duplicates == []


def test_many_aliases_and_long_texts_are_refused():
    for text, reason in (
        ("a: &a 1\nb: [" + "*a," * 101 + "]", "too many anchors"),
        ("a: 1\n" * 60_000, "more than 262,144"),
    ):
        with pytest.raises(yaml.YAMLError, match=reason):
            read_unique(text)
