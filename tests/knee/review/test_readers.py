"""Names of readers: spellings of one name are asked about, others are readers of their own."""

from __future__ import annotations

import pytest

from knee.errors import Faults
from knee.review.readers import alike_readers
from knee.review.verdicts import import_verdicts

from .readings import EXPECTED, _entry, _file, _read


def test_three_spellings_are_one_group_and_another_reader_is_not_in_it():
    assert alike_readers(["Dr Smith", "R1", "dr smith", "Dr. Smith"]) == [("Dr Smith", "dr smith", "Dr. Smith")]


def test_one_reader_in_several_spellings_is_asked_about(tmp_path, table):
    files = [
        _file(tmp_path / f"{number}.json", _entry(f"c{number}"), reviewer=name)
        for number, name in enumerate(("Dr Smith", "dr smith", "Smith, Dr."), 1)
    ]
    import_verdicts(files[:1], table, expected=EXPECTED)
    with pytest.raises(Faults) as caught:
        import_verdicts(files, table, expected=EXPECTED)
    assert caught.value.faults[0] == (
        "reader 'dr smith' may be 'Dr Smith': if they are one person, add --reader 'dr smith=Dr Smith'; "
        "if not, --reader 'dr smith=dr smith'"
    )
    assert len(caught.value.faults) == 2 and len(_read(table)) == 1
    readers = {"dr smith": "Dr Smith", "Smith, Dr.": "Smith, Dr."}
    assert import_verdicts(files, table, expected=EXPECTED, readers=readers).added == 2
    assert [one.reviewer for one in _read(table)] == ["Dr Smith", "Dr Smith", "Smith, Dr."]
    again = _file(tmp_path / "again.json", _entry("c1"), reviewer="Smith, Dr.")
    assert import_verdicts([again], table, expected=EXPECTED).added == 1, "asked once"
    numbers = [_file(tmp_path / f"r{n}.json", _entry(), reviewer=f"R{n}") for n in (1, 12, 21)]
    assert import_verdicts(numbers, table, expected=EXPECTED).added == 3, "numbers are names of their own"
