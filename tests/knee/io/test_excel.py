"""Excel files: cells as people read them; damaged, oversized and hostile files end in a refusal."""

import datetime
import resource
import subprocess
import sys
import zipfile

import numpy as np
import openpyxl
import pytest

from knee.errors import UserError
from knee.io.excel import cell_name, read_excel_rows

PART = "xl/worksheets/sheet1.xml"


def excel(folder, *rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(folder / "grades.xlsx")
    return folder / "grades.xlsx"


def knees(folder):
    return excel(folder, ["patient", "side", "KL"], [1, "L", 2])


def with_rows(path, rows, part=PART):
    """Put rows of XML behind those of the first sheet, which is stored as ``part``."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = parts.pop(PART).replace(b"</sheetData>", f"{rows}</sheetData>".encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(
                name, content.replace(PART.removeprefix("xl/").encode(), part.removeprefix("xl/").encode())
            )
        archive.writestr(part, sheet)
    return path


def test_cells_are_texts_as_people_read_them(tmp_path):
    path = excel(tmp_path, [9001.0, 2.5, " a ", True, datetime.date(2024, 1, 2)], [], [None, "b", None])
    assert read_excel_rows(path, None) == [(1, ["9001", "2.5", "a", "True", "2024-01-02T00:00:00"]), (3, ["", "b"])]


def test_errors_and_formulas_without_a_result_are_not_empty(tmp_path):
    path = with_rows(
        excel(tmp_path, ["=1+1", 2]),
        '<row r="2"><c r="A2"><f>B1*3</f><v>6</v></c><c r="B2" t="str"><f>T(A1)</f><v></v></c>'
        '<c r="C2" t="e"><v>#N/A</v></c></row>',
    )
    assert read_excel_rows(path, None) == [(1, ["=1+1", "2"]), (2, ["6", "", "#N/A"])]


@pytest.mark.parametrize("part", [PART, "xl/worksheets/sheet1.dat"])
@pytest.mark.parametrize(
    ("row", "cell"),
    [
        ('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>', "XFD1048576"),
        ("<row r='1048576'><c r='ZZ1048576' t='inlineStr'><is><t>x</t></is></c></row>", "ZZ1048576"),
        ('<row r="1048576"><c/><c/><c r="D1048576"/><c><v>1</v></c></row>', "E1048576"),
        ('<row><c r="ZZZ3"><v>1</v></c></row>', "ZZZ3"),
        ('<row r="999999999999"><c r="A999999999999"><v>1</v></c></row>', "A1048577"),
    ],
)
def test_a_stray_cell_far_away_is_refused_by_name_in_little_memory(tmp_path, row, cell, part):
    path = with_rows(knees(tmp_path), row, part)
    read = "import sys, pathlib, knee.io.excel as excel; excel.read_excel_rows(pathlib.Path(sys.argv[1]), None)"
    limit = 2 << 30
    done = subprocess.run(
        [sys.executable, "-c", read, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("knee.errors.UserError")
    assert f"grades.xlsx: cell {cell} is too far from the first" in told
    assert "delete stray cells, or save the sheet as 'CSV UTF-8'" in told


def test_cells_that_have_only_a_format_do_not_count(tmp_path):
    path = with_rows(knees(tmp_path), '<row r="1048576" ht="12"><c r="XFD1048576" s="0"/></row>')
    assert read_excel_rows(path, None) == [(1, ["patient", "side", "KL"]), (2, ["1", "L", "2"])]


@pytest.mark.parametrize(("limit", "value"), [("MOST_ROWS", 1), ("MOST_COLUMNS", 2), ("MOST_CELLS", 5)])
def test_more_than_the_limits_is_refused(tmp_path, monkeypatch, limit, value):
    path = knees(tmp_path)
    monkeypatch.setattr(f"knee.io.excel.{limit}", value)
    with pytest.raises(UserError, match=r"cell C[12] is too far"):
        read_excel_rows(path, None)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = knees(tmp_path)
    monkeypatch.setattr("knee.io.excel._MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"grades.xlsx: unpacks to [0-9,]+ bytes, more than 1,000"):
        read_excel_rows(path, None)


def test_damaged_and_missing_files_are_refused_by_name(tmp_path):
    path = knees(tmp_path)
    whole = path.read_bytes()
    with pytest.raises(UserError, match="cannot be read"):
        read_excel_rows(tmp_path / "none.xlsx", None)
    for content in (b"", whole[:10], whole[: len(whole) // 2], b"patient,side,KL\n1,L,2\n"):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"grades.xlsx: is damaged or not an Excel file .*; save it again, or as 'CSV"
        ):
            read_excel_rows(path, None)


def test_an_interruption_is_not_a_damaged_file(tmp_path, monkeypatch):
    path = knees(tmp_path)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("openpyxl.load_workbook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_excel_rows(path, None)


def test_flipped_bytes_give_the_same_cells_or_a_refusal(tmp_path):
    path = excel(tmp_path, ["patient", "side", "KL"], *([number, "L", number % 5] for number in range(40)))
    whole = path.read_bytes()
    right = read_excel_rows(path, None)
    places = np.random.default_rng(1).integers(0, len(whole), 200)
    refused = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert read_excel_rows(path, None) == right
        except UserError:
            refused += 1
    assert 0 < refused < len(places)


def test_names_of_cells():
    assert (cell_name(7, 28), cell_name(1_048_576, 16_384)) == ("AB7", "XFD1048576")
