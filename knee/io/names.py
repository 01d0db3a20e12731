"""Names in one form: 'ü' may be stored as one letter or as 'u' and a mark, as macOS does, and looks the same."""

from __future__ import annotations

import unicodedata


def composed(name: str) -> str:
    """The name with letters and their marks as one (Unicode's NFC), so that one person is not taken for two.

    For names that are compared; a path stays as it is, or its file would not open.

    >>> composed("Mu\\u0308ller") == "M\\u00fcller" == composed("M\\u00fcller")
    True
    """
    return unicodedata.normalize("NFC", name)
