"""What cannot be made of one case costs the others nothing: it is told, and they go on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from knee.errors import UserError


class NotMade(UserError):
    """Something that was asked for cannot be made of one case; other cases are not concerned."""


@contextmanager
def making(what: str) -> Iterator[None]:
    """Raise whatever goes wrong within as ``NotMade``, with ``what`` and the reason; show no warning of a library.

    Libraries raise almost anything at files that bend the standard. Nothing is to be written to disk within: a full one
    concerns every case.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        raise NotMade(f"no {what}: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotMade(f"no {what} ({type(error).__name__}: {reason}); look at its file") from error
