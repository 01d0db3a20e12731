"""The document of one reader's verdicts: damaged, foreign and impossible ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from knee.errors import Faults, UserError
from knee.review.verdicts import import_verdicts
from knee.review.verdicts_file import Verdict, verdicts_document

from .readings import EXPECTED, _entry, _file, _read


def test_a_comment_that_no_table_could_hold_is_refused(tmp_path, table):
    file = _file(tmp_path / "a.json", _entry(comment="x" * 10_000), _entry("c2", comment="x" * 140_000))
    with pytest.raises(
        Faults, match="case 'c2': comment has 140000 characters, at most 10000 are allowed; shorten it"
    ) as caught:
        import_verdicts([file], table, expected=EXPECTED)
    assert len(caught.value.faults) == 1 and not table.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run": "other"}, "is of run 'other', not 'run'; it has this run's model: .* renamed, rename it back"),
        ({"run": "other", "model_hash": "x"}, "is of run 'other', not 'run'; import it into that run"),
        ({"model_hash": "older"}, "another model's maps"),
        ({"grades": 3}, "has 3 grades, the run has 5"),
        ({"reviewer": "  "}, "names no reader"),
        ({"reviewer": 7}, "names no reader"),
        ({"verdicts": {}}, "no list of verdicts"),
        ({"schema": "x"}, "is not a verdicts file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, table, changes, told):
    with pytest.raises(Faults, match=told):
        import_verdicts([_file(tmp_path / "a.json", _entry(), **changes)], table, expected=EXPECTED)


@pytest.mark.parametrize("content", [b'{"schema": "knee-rev', b"\xff\xfe", b"", b"[" * 100_000, b"[1]", b"null"])
def test_a_damaged_file_is_named(tmp_path, table, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Faults, match=r"a\.json: is"):
        import_verdicts([tmp_path / "a.json"], table, expected=EXPECTED)


def test_a_file_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path, table):
    file = _file(tmp_path / "a.json", _entry())
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert import_verdicts([file], table, expected=EXPECTED).added == 1


def test_a_missing_file_is_named(tmp_path, table):
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        import_verdicts([tmp_path / "none.json"], table, expected=EXPECTED)


@pytest.mark.parametrize("between", ["\ud800", "é", "\x00", "\n"])
def test_a_time_that_no_table_should_hold_is_refused(tmp_path, table, between):
    file = _file(tmp_path / "a.json", _entry(time=f"2025-03-01{between}12:00:00+00:00"))
    with pytest.raises(Faults, match=r"case 'c1': time .* is not like"):
        import_verdicts([file], table, expected=EXPECTED)
    assert not table.exists()


def test_a_reading_made_elsewhere_is_imported_as_it_was(tmp_path, table):
    said = [
        Verdict("c1", "R7", "2025-03-01T12:00:00+00:00", "run", "hash", 1, 3, "disagree", "subtle"),
        Verdict("c2", "R7", "2025-03-01T12:01:00+00:00", "run", "hash", None, None, "", "blurred"),
    ]
    path = tmp_path / "made.json"
    path.write_text(json.dumps(verdicts_document(said, grade_set="kl", grades=5)))
    import_verdicts([path], table, expected=EXPECTED)
    assert _read(table) == said
    with pytest.raises(UserError, match="these are of 2"):
        verdicts_document([said[0], replace(said[1], reviewer="R8")], grade_set="kl", grades=5)
