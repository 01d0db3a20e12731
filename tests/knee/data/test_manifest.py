"""Manifest: every error with its line in one report."""

import numpy as np
import pandas as pd
import pytest

from knee.data.manifest import Manifest, inspect_manifest, read_manifest, write_manifest
from knee.data.splits import read_split
from knee.errors import Faults, UserError
from tests.knee.intake.samples import HEADER, KL, touch, written


def manifest(folder, text, *, encoding="utf-8"):
    path = folder / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_read(tmp_path):
    touch(tmp_path, "a.png", "b.png", "m.png")
    path = manifest(tmp_path, f"{HEADER},age,spacing_mm\na.png,007,L,2.0,m.png,61,0.14\n\n./b.png,8,,,,,\n")
    read = read_manifest(path, KL)
    table = read.table
    assert table["patient"].tolist() == ["007", "8"]
    assert table["grade"].tolist() == [2, pd.NA]
    assert str(table["grade"].dtype) == "Int64"
    assert table["line"].tolist() == [2, 4]
    assert table["age"].tolist() == ["61", ""]
    assert table["spacing_mm"].iat[0] == 0.14
    assert np.isnan(table["spacing_mm"].iat[1])
    assert read.image_path(0) == tmp_path / "a.png"
    assert read.mask_path(0) == tmp_path / "m.png"
    assert read.mask_path(1) is None
    assert read.folder == tmp_path


def test_all_faults_in_one_report(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png", "d.png")
    path = manifest(
        tmp_path,
        f"{HEADER},split,spacing_mm\n"
        "a.png,1,L,KL2,,train,0.1\n"
        "./a.png,1,L,2,,train,0.1\n"
        "gone.png,2,left,2,,train,0.1\n"
        "b.png,,R,2,none.png,train,0.1\n"
        "c.png,1,R,7,,test,0.1\n"
        "d.png,3,R,1,,dev,-3\n"
        ",4,R,1,,,\n"
        "x,y\n",
    )
    with pytest.raises(Faults) as caught:
        read_manifest(path, KL)
    faults = caught.value.faults
    expected = [
        "manifest.csv line 2: grade 'KL2' is not 0–4 or empty; write 2",
        "manifest.csv line 2: image 'a.png' is on line 3 again, with another grade; keep the correct row",
        "manifest.csv line 3: image './a.png' is already on line 2, with another grade; keep the correct row",
        "manifest.csv line 4: image 'gone.png' is not a file",
        "manifest.csv line 4: side 'left' is not L, R or empty; write L",
        "manifest.csv line 5: mask 'none.png' is not a file",
        "manifest.csv line 5: patient is empty",
        "manifest.csv line 6: grade '7' is not 0–4",
        "manifest.csv line 6: patient '1' is in train (line 2) and test (line 6)",
        "manifest.csv line 7: split 'dev' is not train, val, test or empty",
        "manifest.csv line 7: spacing_mm '-3'",
        "manifest.csv line 8: image is empty",
        "manifest.csv line 9: 2 fields, but the header has 7",
    ]
    assert len(faults) == len(expected)
    for start in expected:
        assert sum(fault.startswith(start) for fault in faults) == 1, start
    assert [int(f.split("line ")[1].split(":")[0]) for f in faults] == [2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9]


def test_what_is_left_without_the_bad_rows(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png", "d.png")
    rows = [
        "a.png,1,L,KL2,",
        "b.png,2,L,2,",
        "b.png,2,L,2,",
        "gone.png,3,,0,",
        "c.png,4,,1,none.png",
        "d.png,5,,,",
        "x,y",
    ]
    path = manifest(tmp_path, "\n".join([HEADER, *rows]))
    found = inspect_manifest(path, KL)
    assert [row.line for row in found.bad] == [2, 4, 5, 6, 8]
    assert found.bad[0] == (2, "a.png", "grade 'KL2' is not 0–4 or empty; write 2")
    assert found.bad_lines == {2, 4, 5, 6, 8}
    assert found.valid.table[["image", "line"]].values.tolist() == [["b.png", 3], ["d.png", 7]]
    assert found.valid.table.index.tolist() == [0, 1]
    assert (len(found.manifest.table), found.count) == (6, 7)
    pd.testing.assert_frame_equal(
        found.valid.table.iloc[:1], read_manifest(written(tmp_path, rows[1]), KL).table.assign(line=3)
    )


def test_a_patient_whose_name_is_stored_in_two_ways_is_one_and_stays_in_one_split(tmp_path):
    one, two = "M\u00fcller", "Mu\u0308ller"
    touch(tmp_path, f"{one}.png", f"{two}.png")
    path = written(tmp_path, f"{one}.png,{one},L,0,", f"{two}.png,{two},R,1,")
    read = read_manifest(path, KL)
    assert read.table["patient"].tolist() == [one, one]
    assert read.table["image"].tolist() == [f"{one}.png", f"{two}.png"]
    split = tmp_path / "split.csv"
    split.write_text(f"image,split,rank\n{one}.png,train,0.5\n{two}.png,test,0.5\n", encoding="utf-8")
    with pytest.raises(Faults, match=f"patient '{one}' is in more than one split: train .* and test"):
        read_split(split, read)
    with_splits = manifest(tmp_path, f"{HEADER},split\n{one}.png,{one},L,0,,train\n{two}.png,{two},R,1,,test\n")
    with pytest.raises(Faults, match=rf"patient '{one}' is in train \(line 2\) and test \(line 3\)"):
        read_manifest(with_splits, KL)


def test_duplicates_that_contradict_are_all_bad(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    found = inspect_manifest(written(tmp_path, "a.png,1,L,1,", "a.png,1,L,2,", "b.png,2,,0,", "./b.png,2,,0,"), KL)
    assert [(row.line, "another grade" in row.reason) for row in found.bad] == [(2, True), (3, True), (5, False)]


def test_many_faults_are_counted_not_printed(tmp_path):
    path = manifest(tmp_path, HEADER + "".join(f"\n{i}.png,{i},L,0," for i in range(500)))
    with pytest.raises(Faults, match="500 errors") as caught:
        read_manifest(path, KL)
    lines = str(caught.value).splitlines()
    assert len(caught.value.faults) == 500
    assert len(lines) == 3
    assert "line 2: image '0.png' is not a file" in lines[1]
    assert lines[2].endswith("… and 499 more of this kind, lines 3–501")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_and_byte_order_mark(tmp_path, separator):
    touch(tmp_path, "a.png")
    text = f"{HEADER},spacing_mm\r\na.png,01,L,3,,0.25\r\n".replace(",", separator).replace("0.25", "0,25")
    read = read_manifest(manifest(tmp_path, text, encoding="utf-8-sig"), KL)
    assert read.table["patient"].tolist() == ["01"]
    assert read.table["spacing_mm"].tolist() == [0.25]


def test_paths_of_windows_and_titles_in_any_case(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png", "odd\\name.png")
    path = manifest(
        tmp_path, "Image,PATIENT,Side,grade,Mask,Age\nimages\\a.png,1,L,2,masks\\a.png,61\nodd\\name.png,2,R,1,,50\n"
    )
    read = read_manifest(path, KL)
    assert read.table["image"].tolist() == ["images/a.png", "odd\\name.png"]
    assert read.table["mask"].tolist() == ["masks/a.png", ""]
    assert read.table["Age"].tolist() == ["61", "50"]
    with pytest.raises(Faults, match="column 'image' occurs 2 times"):
        read_manifest(manifest(tmp_path, f"Image,{HEADER}\na,b,1,L,2,\n"), KL)


def test_quoted_field_over_two_lines_keeps_line_numbers(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    path = manifest(tmp_path, f'{HEADER},report\na.png,1,L,0,,"one\ntwo"\nb.png,2,L,9,,\n')
    with pytest.raises(Faults, match="line 4: grade '9'"):
        read_manifest(path, KL)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b";;;;\n", "contains only separators; its first line names the columns, image,patient"),
        (b"\x89PNG\0\0", "is not a CSV file but binary"),
        (b"image,patient\n\xff\xfe,1\n", "line 2: is not UTF-8"),
        (b"image,patient\n", "column 'side' is missing"),
        (b"image,patient,side,grade,mask,mask\n", "column 'mask' occurs 2 times"),
        (b"image,patient,side,grade,mask,line\na.png,1,L,0,,7\n", "line 1: column 'line' has the name .* rename it"),
        (b"image,patient,side,grade,mask\n", "has a header and no rows"),
        (b'image,patient,side,grade,mask\n"a,1,L,0,\n', "check its quotation marks"),
    ],
)
def test_not_a_manifest(tmp_path, content, reason):
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_manifest(path, KL)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_manifest(path, KL)


def test_written_is_read_again_and_never_overwritten(tmp_path):
    touch(tmp_path, "a.png", "ä b,c.png")
    read = read_manifest(manifest(tmp_path, f'{HEADER},note\na.png,007,L,2,,\n"ä b,c.png",8,,,,"x ""y"""\n'), KL)
    copy = tmp_path / "copy.csv"
    write_manifest(copy, read.table)
    pd.testing.assert_frame_equal(read_manifest(copy, KL).table, read.table)
    with pytest.raises(UserError, match="exists already"):
        write_manifest(copy, read.table)
    write_manifest(copy, read.table.iloc[:1], force=True)
    assert len(read_manifest(copy, KL).table) == 1
    assert sorted(p.name for p in tmp_path.glob("*.csv*")) == ["copy.csv", "manifest.csv"]


def test_a_name_for_another_folder_leads_to_the_same_file(tmp_path):
    """``link/../x`` is beside what the link leads to, not beside the link."""
    for folder in ("lists", "far/deep", "out"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lists" / "link").symlink_to(tmp_path / "far" / "deep")
    (tmp_path / "far" / "x.png").write_text("far")
    (tmp_path / "lists" / "x.png").write_text("near")
    manifest = Manifest(tmp_path / "lists" / "manifest.csv", pd.DataFrame())
    for name in ("link/../x.png", "x.png", "../far/x.png", str(tmp_path / "far" / "x.png")):
        there = tmp_path / "lists" / name
        here = tmp_path / "out" / manifest.named_in(tmp_path / "out", name)
        assert here.read_text() == there.read_text()
    assert manifest.named_in(tmp_path / "out", "") == ""
    assert manifest.named_in(tmp_path / "out", "v.nii.gz#3") == "../lists/v.nii.gz#3"
