"""Parse the values of options."""

from __future__ import annotations

import argparse
import math

from knee.errors import UserError
from knee.images.slices import SliceChoice, parse_slices


def pixels(text: str) -> float:
    """A number of pixels from 0 to 256."""
    return _within(text, 0, 256, f"{text!r} is not a number of pixels from 0 to 256")


def millimetres(text: str) -> float:
    """A size of a crop in mm."""
    return _within(text, 60, 400, f"{text!r} is not a size from 60 to 400 mm")


def seconds(text: str) -> float:
    """A time to wait in seconds."""
    return _within(text, 1, 3600, f"{text!r} is not a time from 1 to 3600 seconds")


def _within(text: str, low: float, high: float, refusal: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(refusal)
    return value


def slices(text: str) -> SliceChoice:
    """A choice of slices, as ``knee.images.slices.parse_slices``."""
    try:
        return parse_slices(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, mark, value = text.partition("=")
    if not mark or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()
