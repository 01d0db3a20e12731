"""CSV tables written by people: separators, line numbers, ragged rows, and fields that are not formulas."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knee.errors import Faults, UserError
from knee.io.tables import (
    MOST_FAULTS,
    _regular_table,
    plain_text,
    read_csv_rows,
    read_rows,
    read_table,
    shortened,
    spreadsheet_text,
)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
def test_rows_have_the_line_that_they_start_on(tmp_path: Path, mark: str, start: str) -> None:
    text = mark.join(["case", "note"]) + "\n" + mark.join(["a", '"two\nlines"']) + "\n\n" + mark.join([" b ", "x"])
    header, rows = read_csv_rows(written(tmp_path, start + text), ("case",))
    first = 2 + start.count("\n")
    assert header == ["case", "note"]
    assert rows == [(first, ["a", "two\nlines"]), (first + 3, ["b", "x"])]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"case\0", "is not a CSV file but binary"),
        (b"case,note\nM\xfcller,x\n", r"line 2: is not UTF-8 text; save the table as 'CSV UTF-8'"),
        (b"  \n", "is empty; its first line names the columns, case"),
        (b",,\n,,\n", "contains only separators"),
        (b'case,note\na,"open\n', r"line 2: is not a CSV row"),
    ],
)
def test_what_is_not_a_table_of_text_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_csv_rows(written(tmp_path, content), ("case",))
    with pytest.raises(UserError, match="cannot be read"):
        read_csv_rows(tmp_path, ("case",))


def test_wrong_columns_are_listed_together(tmp_path: Path) -> None:
    path = written(tmp_path, "Case,x,x,line\na,1,2,3\n")
    with pytest.raises(Faults) as caught:
        read_rows(path, ("case", "grade"))
    assert len(caught.value.faults) == 3
    assert "column 'grade' is missing" in caught.value.faults[0]
    assert "column 'x' occurs 2 times" in caught.value.faults[1]
    assert "column 'line' has the name of a column that is added here" in caught.value.faults[2]


def test_ragged_rows_are_set_apart_with_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, "CASE,Note\na,1\nb\nc,3,4\nd,007\n")
    table, ragged = read_rows(path, ("case",))
    assert table.to_dict("list") == {"case": ["a", "d"], "Note": ["1", "007"], "line": [2, 5]}
    assert [(row.line, row.fields) for row in ragged] == [(3, ["b"]), (4, ["c", "3", "4"])]
    assert read_table(path, ("case",))[1][0].startswith("a.csv line 3: 1 fields, but the header has 2")


def test_tables_too_wide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 5,001 columns, more than 5,000"):
        read_rows(written(tmp_path, ",".join(f"c{number}" for number in range(5001)) + "\n"), ())


@given(st.text(st.sampled_from("'=+-@\t\ra1 ")))
def test_no_field_is_a_formula_and_every_text_comes_back(text: str) -> None:
    field = spreadsheet_text(text)
    assert plain_text(field) == text
    assert field[:1] not in ("=", "+", "-", "@", "\t", "\r")


def test_long_lists_of_errors_are_cut_with_their_number() -> None:
    assert shortened(["x"] * MOST_FAULTS) == ["x"] * MOST_FAULTS
    assert shortened(["x"] * (MOST_FAULTS + 5))[MOST_FAULTS:] == ["… and 5 more"]


FIELDS = st.text(st.sampled_from("ab0 .é\xa0#=-NA"), max_size=3)


@given(
    st.lists(st.lists(FIELDS, min_size=1, max_size=3), max_size=6),
    st.sampled_from(",;"),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_regular_files_are_read_faster_and_alike(tmp_path: Path, rows: list[list[str]], mark: str, end: str) -> None:
    path = written(tmp_path, "\ufeff" + end.join(mark.join(row) for row in [["image", "b"], *rows]) + end)
    table, ragged = read_rows(path, ("image", "b"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("knee.io.tables._regular_table", lambda *_: None)
        slow, slow_ragged = read_rows(path, ("image", "b"))
    pd.testing.assert_frame_equal(table, slow, check_column_type=False)
    assert ragged == slow_ragged


def test_which_files_are_regular(tmp_path: Path) -> None:
    for regular in ("a,b\n1,2\n", "a,b\n1,2", "\ufeffa;b\nNA;\n;é\n"):
        found = _regular_table(written(tmp_path, regular), 2)
        assert found is not None
        assert found["line"].tolist() == list(range(2, len(found) + 2))
    for other in (
        "a,b\n",
        "a,b\n1\n2,3,4\n",
        "a,b\n1,2,3\n4\n",
        'a,b\n"1",2\n',
        "a,b\n 1,2\n",
        "a,b\n,\n1,2\n",
        "a,b\r\n1,2\r\n",
    ):
        assert _regular_table(written(tmp_path, other), 2) is None
