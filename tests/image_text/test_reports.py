"""Reports of a manifest: texts, files, bad files, equal ones, and what dcmt check says of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from image_text.reports import encode_reports, read_reports, remarks
from image_text.text import HashedWords
from knee.data.manifest import Manifest
from knee.errors import Faults, UserError


def manifest(folder: Path, reports: Sequence[str], patients: Sequence[str] | None = None) -> Manifest:
    table = pd.DataFrame({"report": list(reports)})
    table["patient"] = patients or [f"P{number}" for number in range(len(table))]
    table["line"] = range(2, 2 + len(table))
    return Manifest(folder / "manifest.csv", table)


def test_texts_and_files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes("\ufeff<p>Narrow\njoint</p>".encode())
    found = read_reports(manifest(tmp_path, ["texts/a.txt", "", "see a.txt"]))
    assert found == ["Narrow joint", "", "see a.txt"]


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Kniegelenk verschmälert".encode("latin-1"))
    (tmp_path / "huge.txt").write_bytes(b"a" * ((1 << 22) + 1))
    with pytest.raises(Faults) as error:
        read_reports(manifest(tmp_path, ["latin.txt", "absent.txt", "huge.txt", "fine"]))
    text = str(error.value)
    assert "manifest.csv line 2: report 'latin.txt' is not UTF-8 text (byte 18); save it as UTF-8" in text
    assert "line 3: report 'absent.txt' cannot be read (No such file or directory)" in text
    assert "line 4: report 'huge.txt' has 4,194,305 bytes" in text
    assert len(error.value.faults) == 3


def test_no_reports_at_all(tmp_path: Path) -> None:
    without = Manifest(tmp_path / "m.csv", pd.DataFrame({"line": [2]}))
    with pytest.raises(UserError, match="no column 'report'; join one from a spreadsheet"):
        read_reports(without)
    assert read_reports(without, needed=False) == [""]
    with pytest.raises(UserError, match="empty in every row"):
        read_reports(manifest(tmp_path, ["", "<br>"]))


def test_equal_reports_have_equal_numbers_and_none_has_minus_one() -> None:
    found = encode_reports(["Mild. KL 2", "mild. KL 3", "", "severe"], vocabulary=HashedWords(4096), length=8)
    assert found.texts[0] == found.texts[1] != found.texts[3]
    assert found.texts[2] == -1
    assert found.present.tolist() == [True, True, False, True]
    assert found.grade_words == 2
    assert found.describe().startswith("3 of 4 images have a report, 2 of them distinct as tokens; 2 named the grade")


def test_remarks_name_lines_and_no_texts(tmp_path: Path) -> None:
    secret = "Narrow medial joint space in this knee"
    rows = [secret, secret, "", "KL 3", secret.upper(), "word " * 10_001]
    found = remarks(manifest(tmp_path, rows, ["a", "b", "c", "d", "b", "e"]))
    assert found == [
        "1 row without a report: line 4",
        "2 rows with the report of another patient's image, word by word: lines 3, 6",
        "1 row with a report of more than 10,000 words: line 7",
        "1 row with a report that names the grade (masked before the text tower): line 5",
        "1 row with a report in capitals only (case is ignored): line 6",
    ]
    assert remarks(Manifest(tmp_path / "m.csv", pd.DataFrame({"line": [2]}))) == []


def test_tokens_of_a_report_do_not_depend_on_the_others() -> None:
    one = encode_reports(["mild narrowing"], vocabulary=HashedWords(4096), length=8)
    two = encode_reports(["other", "mild narrowing"], vocabulary=HashedWords(4096), length=8)
    assert np.array_equal(one.tokens[0], two.tokens[1])


def test_remarks_on_further_columns(tmp_path: Path) -> None:
    rows = manifest(tmp_path, ["a", "b", "c"])
    rows.table["age"], rows.table["scanner"] = ["60", "230", "-1"], ["X", "X", ""]
    assert remarks(rows) == [
        "2 rows with an age below 0 or above 115: lines 3, 4",
        "column 'scanner' has one value in all rows, so it says nothing as an input",
    ]


def test_memory_holds_no_tokens_of_the_reports() -> None:
    """6,000 reports of 256 tokens are 6 MB as int32; the peak, traced by the interpreter, is far below."""
    tracemalloc.start()
    found = encode_reports(
        (f"report {number % 5000 // 100} of {number % 100} " + "of a wide joint " * 60 for number in range(6000)),
        vocabulary=HashedWords(1 << 16),
        length=256,
    )
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tokens.shape == (6000, 256)
    assert np.array_equal(found.tokens[5042], found.tokens[42])
    assert (found.texts[5042], len(np.unique(found.texts))) == (found.texts[42], 5000)
    assert found.cut == 0
    assert held < 500_000
    assert peak < 3_000_000
    with pytest.raises(ValueError, match="read-only"):
        found.tokens[0, 0] = 7


def test_no_reports_no_tokens() -> None:
    found = encode_reports([], vocabulary=HashedWords(64), length=4)
    assert (found.tokens.shape, found.texts.shape) == ((0, 4), (0,))
