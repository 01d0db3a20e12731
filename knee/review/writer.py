"""The interface of export formats: a writer that takes one case after another. An error in one case does not affect others."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
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
    """The files written for a case, and notes on it: what was left out and why, burned-in text."""

    files: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()


class Writer(ABC):
    """Writes the cases of an export in one format, in a ``with`` block around them all."""

    ending = ""
    """Suffix of the files that it writes for each case into its folder; empty if it writes one file for all cases."""

    @abstractmethod
    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write one case; files on the original's pixels are made only if the original could be read.

        Raises NotMade where this case cannot be written in this format, UserError where a file cannot be written.
        """

    def finish(self) -> Exported:
        """Write what needs all cases, such as the objects of a series; called once after the last case."""
        return Exported()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: B027 - most formats have nothing to complete
        """Complete the output, or discard it after an error."""


class NotMade(UserError):
    """A requested file cannot be made from one case; other cases are not affected."""


@contextmanager
def making(what: str) -> Iterator[None]:
    """Turn any exception inside into ``NotMade`` with ``what`` and the reason, and suppress warnings of libraries.

    Libraries raise almost any exception for files that violate the standard. Do not write to disk inside: a full disk
    affects every case.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        raise NotMade(f"no {what}: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotMade(f"no {what} ({type(error).__name__}: {reason}); check its file") from error
