"""Normalize Unicode names: 'ü' may be stored as one character, or as 'u' and a combining mark (as on macOS)."""

from __future__ import annotations

import unicodedata


def composed(name: str) -> str:
    """The name in Unicode's normal form NFC, so that one person is not counted as two.

    Only for names that are compared: a path must not be normalized, or its file might not open.

    >>> composed("Mu\\u0308ller") == "M\\u00fcller" == composed("M\\u00fcller")
    True
    """
    return unicodedata.normalize("NFC", name)
