"""The structure of a JPEG stream, read from its markers before anything is decoded (ITU-T T.81, annex B)."""

from __future__ import annotations

import re
from typing import NamedTuple

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_END, _SCAN, _FRAME_LS = 0xD9, 0xDA, 0xF7
_FRAMES = {*range(0xC0, 0xD0), _FRAME_LS} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}
_MOST_SEGMENTS = 10_000
_MOST_SCANNED = 300_000_000
"""Pixels times scans: each of the 10 scans of a progressive JPEG goes through all pixels."""
_MOST_STREAM = 150_000_000
"""Bytes: a decoder takes about a second for 30 million."""
_FILLING = b"\xff" * 1024


class JpegStructure(NamedTuple):
    """Information from the markers of a JPEG."""

    height: int
    width: int
    scans: int
    end: int
    """The position after the end marker."""


def jpeg_structure(data: bytes) -> JpegStructure:
    """Size, number of scans and end of the JPEG stream that ``data`` starts with; for JPEG-LS, of one scan to its end.

    Raises ValueError if the structure is damaged or has no end marker.
    """
    position, scans, height, width = 2, 0, 0, 0
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.match(data, position)
        if found is None:
            break
        kind, position = found[1][0], found.end()
        if kind == _END:
            _check_stream(data, position)
            return JpegStructure(height, width, scans, position)
        if kind in _ALONE:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if kind in _FRAMES:
            height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (3, 5))
        position += max(length, 2)
        if kind == _SCAN:
            scans += 1
            after = _AFTER_SCAN.search(data, position)
            position = len(data) if after is None else after.start()
        elif kind == _FRAME_LS:  # its data may contain bytes that look like a marker
            return JpegStructure(height, width, 1, len(data))
    if position < len(data):
        raise ValueError(f"is a damaged JPEG (no marker at byte {position}, or more than {_MOST_SEGMENTS:,} of them)")
    raise ValueError("is a truncated JPEG (it has no end marker)")


def _check_stream(data: bytes, end: int) -> None:
    if end > _MOST_STREAM:
        raise ValueError(f"is a JPEG of {end // 10**6} million bytes; save it as PNG or crop it")
    if data.find(_FILLING, 0, end) >= 0:  # decoders restart repeatedly in long fillings
        raise ValueError("is a damaged JPEG (a long filling between markers)")


def check_scans(scans: int, height: int, width: int) -> None:
    """Refuse more scans than a JPEG of this size can have if it is to be decoded within seconds."""
    if scans * height * width > _MOST_SCANNED or scans > 1000:
        raise ValueError(f"is a JPEG of {scans} scans of {width} × {height} pixels; save it as an ordinary JPEG or PNG")
