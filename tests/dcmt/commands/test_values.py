"""Values of options: read, or refused with what is right."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from dcmt.commands import values
from knee.images.slices import SliceChoice


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.pixels, "0", 0.0),
        (values.pixels, "256", 256.0),
        (values.millimetres, "60", 60.0),
        (values.millimetres, "140.5", 140.5),
        (values.slices, "middle:20", SliceChoice(middle=20)),
        (values.slices, "10-60", SliceChoice(first=10, last=60)),
        (values.pair, " a = b=c ", ("a", "b=c")),
        (values.pair, "side=", ("side", "")),
    ],
)
def test_values_are_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "hint"),
    [
        (values.pixels, "-1", "from 0 to 256"),
        (values.pixels, "nan", "from 0 to 256"),
        (values.millimetres, "59", "from 60 to 400 mm"),
        (values.millimetres, "wide", "from 60 to 400 mm"),
        (values.slices, "middle:0", "write all, middle:20 or, numbered from 0, 10-60"),
        (values.pair, "a", "is not NAME=VALUE"),
        (values.pair, "=a", "is not NAME=VALUE"),
    ],
)
def test_other_values_are_refused(read: Callable[[str], object], text: str, hint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=hint):
        read(text)
