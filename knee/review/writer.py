"""What an export format is: a writer that takes case after case. What one case cannot give costs the others nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from knee.errors import UserError
from knee.images.original import Original
from knee.review.cases import ReviewCase

NETWORKS = ("teacher", "student")


@dataclass(frozen=True)
class Exported:
    """The files written for a case, and what to know of it: what was left out and why, text within the pixels."""

    files: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()


class Writer:
    """Writes the cases of an export in one format, in a ``with`` block around them all."""

    ending = ""
    """Of the files it writes for each case into its folder; empty where it writes one file for all."""

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write one case; files of the original's pixels are made only where it could be read.

        Raises NotMade where this case has nothing in this format, UserError where a file cannot be written.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        """Finish what was begun, or drop it after an error."""


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
