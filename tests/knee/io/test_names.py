"""Names in one Unicode form: equal ones become equal, different ones stay different."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knee.io.names import composed


def test_both_forms_of_a_letter_are_one_name_and_look_alikes_are_not() -> None:
    assert composed("Mu\u0308ller") == composed("M\u00fcller") == "M\u00fcller"
    assert len({composed(name) for name in ("M\u00fcller", "Muller", "m\u00fcller", "\ufb01n", "fin")}) == 5


@given(st.text())
def test_composing_twice_changes_nothing_more(name: str) -> None:
    assert composed(composed(name)) == composed(name)
