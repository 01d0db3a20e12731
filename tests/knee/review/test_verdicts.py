from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from knee.errors import Faults, UserError
from knee.review.verdicts import Imported, import_verdicts, latest_verdicts
from knee.review.verdicts_file import Expected

from .readings import _OWN, EXPECTED, _entry, _file, _read


def test_what_is_imported_is_read_back(tmp_path, table):
    comment = 'a "quoted", ; line\nand =1+1 \0 end'
    file = _file(tmp_path / "a.json", _entry(comment=comment), _entry("c2", blind_grade=None, final_grade=None))
    assert import_verdicts([file], table, expected=EXPECTED) == Imported(added=2, known=0, revised=0)
    first, second = _read(table)
    assert (first.case, first.reviewer, first.blind_grade, first.verdict) == ("c1", "R1", 2, "agree")
    assert first.comment == 'a "quoted", ; line and =1+1 end'
    assert second.blind_grade is None and second.final_grade is None


def test_the_table_only_grows(tmp_path, table):
    import_verdicts([_file(tmp_path / "a.json", _entry())], table, expected=EXPECTED)
    before = table.read_bytes()
    grown = _file(tmp_path / "b.json", _entry(), _entry("c2"))
    assert import_verdicts([grown], table, expected=EXPECTED) == Imported(added=1, known=1, revised=0)
    assert table.read_bytes().startswith(before)
    assert import_verdicts([grown], table, expected=EXPECTED) == Imported(added=0, known=2, revised=0)


def test_a_table_that_is_a_link_stays_one(tmp_path, table):
    shared = tmp_path / "drive" / "verdicts.csv"
    shared.parent.mkdir()
    import_verdicts([_file(tmp_path / "a.json", _entry())], shared, expected=EXPECTED)
    table.symlink_to(shared)
    import_verdicts([_file(tmp_path / "b.json", _entry("c2"))], table, expected=EXPECTED)
    assert table.is_symlink()
    assert [verdict.case for verdict in _read(shared)] == ["c1", "c2"]
    assert list(shared.parent.iterdir()) == [shared]
    shared.unlink()
    with pytest.raises(UserError, match="is a broken link; restore its target"):
        import_verdicts([tmp_path / "b.json"], table, expected=EXPECTED)
    assert not shared.exists()


@pytest.mark.parametrize(
    "header",
    [
        _OWN.replace(",", ";"),
        _OWN.replace("blind_grade,final_grade", "final_grade,blind_grade"),
        f"note,{_OWN}",
        f"\ufeff{_OWN.replace(',', ';')};note",
        f"\ufeff{_OWN}",
        f"\n{_OWN}",
    ],
    ids=["semicolons", "other order", "another column", "as Excel saves it", "byte order mark", "empty line"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_table_that_another_program_saved_is_added_to_as_it_is(tmp_path, table, header, end):
    separator = ";" if ";" in header else ","
    row = {"case": "c1", "reviewer": "R1", "time": "2025-03-01T12:00:00Z", "run": "run", "model_hash": "hash"}
    row |= {"blind_grade": "1", "final_grade": "3", "verdict": "disagree", "comment": "", "note": "mine"}
    names = header.strip("\ufeff\n").split(separator)
    newline = end or "\n"
    text = header.replace("\n", newline) + newline + separator.join(row[name] for name in names) + end
    table.write_bytes(text.encode())
    before = table.read_bytes()
    second = _entry("c2", blind_grade=0, final_grade=4, comment="a, b; c")
    import_verdicts([_file(tmp_path / "a.json", second)], table, expected=EXPECTED)
    assert table.read_bytes().startswith(before), "what was there stays"
    said = [(one.case, one.blind_grade, one.final_grade, one.comment) for one in _read(table)]
    assert said == [("c1", 1, 3, ""), ("c2", 0, 4, "a, b; c")]
    assert import_verdicts([tmp_path / "a.json"], table, expected=EXPECTED).known == 1


def test_a_changed_verdict_needs_to_be_asked_for(tmp_path, table):
    import_verdicts([_file(tmp_path / "a.json", _entry())], table, expected=EXPECTED)
    later = _file(tmp_path / "b.json", _entry(final_grade=4, time="2025-03-02T12:00:00Z"))
    with pytest.raises(Faults, match="--revise"):
        import_verdicts([later], table, expected=EXPECTED)
    assert import_verdicts([later], table, expected=EXPECTED, revise=True).revised == 1
    assert [verdict.final_grade for verdict in _read(table)] == [2, 4]
    assert latest_verdicts(_read(table))["c1", "R1"].final_grade == 4


def test_a_verdict_older_than_the_one_held_is_kept_and_not_counted_as_revised(tmp_path, table):
    import_verdicts([_file(tmp_path / "a.json", _entry(), _entry("c2"))], table, expected=EXPECTED)
    older = _entry(final_grade=4, time="2025-02-28T12:00:00Z")
    # 12:30 at +01:00 is half an hour before 12:00 at +00:00.
    as_well = _entry("c2", final_grade=4, time="2025-03-01T12:30:00+01:00")
    file = _file(tmp_path / "b.json", older, as_well, _entry("c3"))
    done = import_verdicts([file], table, expected=EXPECTED, revise=True)
    assert done == Imported(added=3, known=0, revised=0, older=2)
    latest = latest_verdicts(_read(table))
    assert [latest[case, "R1"].final_grade for case in ("c1", "c2")] == [2, 2]
    same_time = _file(tmp_path / "c.json", _entry(final_grade=3))
    assert import_verdicts([same_time], table, expected=EXPECTED, revise=True).revised == 1
    assert latest_verdicts(_read(table))["c1", "R1"].final_grade == 3


def test_all_errors_are_listed_at_once_and_nothing_is_imported(tmp_path, table):
    wrong = _file(
        tmp_path / "wrong.json",
        _entry("c9"),
        _entry(final_grade=5),
        _entry("c2", blind_grade=True),
        _entry("c2", verdict="maybe"),
        _entry("c3", time="yesterday"),
        _entry("c3", time="2025-03-01T12:00:00"),
        _entry("c3", comment=7),
        {"verdict": "agree"},
        "nothing",
        _entry("c3"),
        _entry("c3", final_grade=1),
    )
    with pytest.raises(Faults) as caught:
        import_verdicts([wrong, _file(tmp_path / "good.json", _entry(), reviewer="R2")], table, expected=EXPECTED)
    told = str(caught.value)
    assert len(caught.value.faults) == 10
    for part in ("'c9' is not one of this run", "final_grade 5 is not 0–4", "True", "'maybe'", "yesterday", "7"):
        assert part in told
    assert "verdict 8: names no case" in told and "has two different verdicts" in told
    assert not table.exists()


def test_a_damaged_table_is_not_added_to(tmp_path, table):
    table.write_text("case,reviewer\nc1,R1\n")
    with pytest.raises(UserError, match="column 'time' is missing"):
        import_verdicts([_file(tmp_path / "a.json", _entry())], table, expected=EXPECTED)
    assert table.read_text() == "case,reviewer\nc1,R1\n"


_ROW = {
    "case": "c1",
    "reviewer": "R1",
    "time": "2025-03-01T12:00:00Z",
    "run": "run",
    "model_hash": "hash",
    "blind_grade": "1",
    "final_grade": "2",
    "verdict": "disagree",
    "comment": "",
}


def _table_of(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("\n".join([_OWN, *(",".join((_ROW | row).values()) for row in rows)]) + "\n", encoding="utf-8")
    return path


def test_a_table_that_was_altered_is_refused_row_by_row(tmp_path, table):
    _table_of(
        table,
        {},
        {"final_grade": "9"},
        {"blind_grade": "5", "verdict": "Bad image"},
        {"run": "other"},
        {"final_grade": "-1"},
        {"final_grade": "9" * 5000},
        {"time": "2025-03-01T12:00:00"},
        {"time": "2025-03-01é12:00:00+00:00"},
    )
    before = table.read_bytes()
    for read in (_read, lambda path: import_verdicts([_file(tmp_path / "a.json", _entry())], path, expected=EXPECTED)):
        with pytest.raises(Faults, match="8 errors; fix these rows, or restore the table from a backup") as caught:
            read(table)
        told = [fault.removeprefix("verdicts.csv line ") for fault in caught.value.faults]
        assert told[:3] == [
            "3: final_grade '9' is not 0–4 or empty",
            "4: blind_grade '5' is not 0–4 or empty",
            "4: verdict 'Bad image' is not one of agree, disagree, unsure, bad_image or empty",
        ]
        assert told[3].startswith("5: is of run 'other', not 'run'; remove the row, or")
        assert [fault[0] for fault in told[4:]] == ["6", "7", "8", "9"]
        assert all("is not like 2025-03-01T12:00:00Z" in fault for fault in told[6:])
    assert table.read_bytes() == before


def test_a_table_with_verdicts_on_earlier_models_is_read(table):
    _table_of(table, {"model_hash": "earlier"}, {"case": "c2", "blind_grade": "", "final_grade": "", "verdict": ""})
    assert [verdict.model_hash for verdict in _read(table)] == ["earlier", "hash"]


def test_free_text_is_not_a_formula_in_a_spreadsheet_and_reads_back(tmp_path, table):
    comments = ["=HYPERLINK(1)", "+1", "-1", "@a", "'=quoted", "'plain", "worse = better"]
    entries = [_entry(f"c{number % 3 + 1}", comment=comment) for number, comment in enumerate(comments)]
    for number, entry in enumerate(entries):
        file = _file(tmp_path / f"{number}.json", entry, reviewer=f"={number}+1")
        assert import_verdicts([file], table, expected=EXPECTED).added == 1
        assert import_verdicts([file], table, expected=EXPECTED).known == 1
    assert [one.comment for one in _read(table)] == comments
    assert [one.reviewer for one in _read(table)] == [f"={number}+1" for number in range(7)]
    fields = [field for row in csv.reader(table.read_text().splitlines()) for field in row]
    assert not [field for field in fields if field[:1] in ("=", "+", "-", "@", "\t", "\r")]


def _import_one(folder: Path, number: int) -> int:
    expected = Expected("run", "hash", 5, {f"c{n}" for n in range(100)})
    return import_verdicts([folder / f"{number}.json"], folder / "verdicts.csv", expected=expected).added


def test_imports_at_the_same_time_lose_nothing(tmp_path, table):
    """Twenty times two readers hand in at once."""
    for number in range(40):
        _file(tmp_path / f"{number}.json", *(_entry(f"c{n}") for n in range(50)), reviewer=f"R{number}")
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        added = list(pool.map(_import_one, [tmp_path] * 40, range(40)))
    assert added == [50] * 40
    assert len(set(_read(table))) == 40 * 50
