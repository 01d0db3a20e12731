"""The interface of export formats: incomplete writers cannot be made, errors in one case name what is missing."""

from __future__ import annotations

import warnings

import pytest

from knee.errors import UserError
from knee.review.nifti import NiftiWriter
from knee.review.png import PngWriter
from knee.review.writer import Exported, NotMade, Writer, making


def test_a_format_without_add_cannot_be_made() -> None:
    class Incomplete(Writer):
        ending = ".txt"

    class Nothing(Writer):
        def add(self, case, original):
            return Exported()

    with pytest.raises(TypeError, match=r"abstract method '?add"):
        Incomplete()
    with Nothing() as writer:
        assert writer.add(None, None) == Exported((), ())
    assert issubclass(PngWriter, Writer) and issubclass(NiftiWriter, Writer)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a.dcm has no spacing"), "no map: a.dcm has no spacing"),
        (NotMade("no region"), "no map: no region"),
        (KeyError("Rows"), r"no map \(KeyError: 'Rows'\); check its file"),
        (ValueError("a\n  b" + "x" * 900), rf"no map \(ValueError: a b{'x' * 197}\); check its file"),
    ],
)
def test_any_error_while_making_is_named_on_one_line(error: Exception, message: str) -> None:
    with pytest.raises(NotMade, match=f"^{message}$") as caught, making("map"):
        warnings.warn("of a library", stacklevel=1)
        raise error
    assert caught.value.__cause__ is error


def test_an_interruption_is_not_an_error_of_one_case() -> None:
    with pytest.raises(KeyboardInterrupt), making("map"):
        raise KeyboardInterrupt
