"""Manifest: every fault with its line in one report; folders of known layouts."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee.data.cache import build_cache
from knee.data.manifest import Manifest, inspect_manifest, read_manifest, write_manifest
from knee.data.splits import read_split
from knee.errors import Faults, UserError
from knee.grades import load_grade_set
from knee.images.read import write_png
from knee.images.slices import split_slice
from knee.intake.folders import manifest_from_folder
from knee.intake.scan import image_files
from knee.io.own_folders import MARK, mark_as_own

KL = load_grade_set("kl")
HEADER = "image,patient,side,grade,mask"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, np.arange(64, dtype=np.uint8).reshape(8, 8))


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


def written(folder, *rows):
    path = folder / "sound.csv"
    path.write_text("\n".join([HEADER, *rows]))
    return path


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


def test_chen_layout(tmp_path):
    touch(tmp_path, "train/2/9001L.png", "train/0/9001R.png", "test/4/9002R.png")
    (tmp_path / "README.md").write_text("x")
    table = manifest_from_folder(tmp_path)
    assert table.columns.tolist() == ["image", "patient", "side", "grade", "mask", "split"]
    assert table.values.tolist() == [
        ["test/4/9002R.png", "9002", "R", 4, "", "test"],
        ["train/0/9001R.png", "9001", "R", 0, "", "train"],
        ["train/2/9001L.png", "9001", "L", 2, "", "train"],
    ]
    assert "chen" in table.attrs["notes"][0]
    out = tmp_path / "elsewhere"
    out.mkdir()
    write_manifest(out / "m.csv", manifest_from_folder(tmp_path, "chen", relative_to=out))
    assert read_manifest(out / "m.csv", KL).image_path(0).samefile(tmp_path / "test/4/9002R.png")


def test_the_second_crops_of_the_published_archive_are_left_out(tmp_path):
    touch(tmp_path, "train/2/9001L.png", "test/4/9002R.png", "auto_test/4/9002R.png")
    for layout in ("auto", "chen"):
        table = manifest_from_folder(tmp_path, layout)
        assert table["image"].tolist() == ["test/4/9002R.png", "train/2/9001L.png"]
        assert "1 image in 'auto_test/' left out" in table.attrs["notes"][1]
    assert len(manifest_from_folder(tmp_path, "tree")) == 3
    with pytest.raises(UserError, match="not named SPLIT/GRADE"):
        manifest_from_folder(tmp_path / "auto_test", "chen")
    touch(tmp_path / "alone", "auto_test/4/9002R.png")
    with pytest.raises(UserError, match="not named SPLIT/GRADE"):
        manifest_from_folder(tmp_path / "alone", "chen")


def test_tree_layouts(tmp_path):
    touch(
        tmp_path, "valid/3/p1_left.png", "training/unlabeled/p2_01.png", "masks/valid/3/p1_left.png", ".hidden/3/x.png"
    )
    table = manifest_from_folder(tmp_path)
    assert table[["patient", "side", "split", "mask"]].values.tolist() == [
        ["p2_01", "", "train", ""],
        ["p1", "L", "val", "masks/valid/3/p1_left.png"],
    ]
    assert table["grade"].tolist() == [pd.NA, 3]


def test_masks_beside_a_folder_of_images_are_theirs(tmp_path):
    touch(tmp_path, "images/1_L.png", "images/2_L.png", "masks/1_L.png", "masks/gone.png", "masks/images/2_L.png")
    table = manifest_from_folder(tmp_path)
    assert table["mask"].tolist() == ["masks/1_L.png", "masks/images/2_L.png"]
    (note,) = [note for note in table.attrs["notes"] if "in masks" in note]
    assert note.startswith(
        "1 file in masks fits no image ('masks/gone.png' first); a mask must have the path of its image"
    )


def test_a_mask_that_may_be_of_two_images_is_of_neither_and_this_is_said(tmp_path):
    touch(tmp_path, "0/1_L.png", "3/1_L.png", "2/7_L.png", "7_L.png", "masks/1_L.png", "masks/7_L.png")
    table = manifest_from_folder(tmp_path, pattern="file")
    assert dict(zip(table["image"], table["mask"], strict=True)) == {
        "0/1_L.png": "",
        "2/7_L.png": "",
        "3/1_L.png": "",
        "7_L.png": "masks/7_L.png",
    }
    assert "1 file in masks fits no image ('masks/1_L.png' first)" in " ".join(table.attrs["notes"])


def test_masks_that_all_fit_are_not_remarked_on(tmp_path):
    touch(tmp_path, "images/1_L.png", "masks/1_L.png")
    assert "in masks" not in " ".join(manifest_from_folder(tmp_path).attrs["notes"])


def test_plain_folder_is_ungraded_and_says_how_patients_were_named(tmp_path):
    touch(tmp_path, "a_1.png", "b_2.png")
    table = manifest_from_folder(tmp_path)
    assert table["grade"].isna().all()
    assert "split" not in table
    assert any("every image counts as a separate patient" in note for note in table.attrs["notes"])
    named = manifest_from_folder(tmp_path, pattern=r"(?P<patient>[a-z]+)_")
    assert named["patient"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        ([], {}, "contains no images"),
        (["a.png"], {"layout": "chen"}, "not named SPLIT/GRADE"),
        (["a.png"], {"layout": "tre"}, "write auto, chen, tree or plain"),
        (["a.png"], {"pattern": "("}, "not a regular expression"),
        (["a.png"], {"pattern": "(?P<patient>[0-9]+)"}, "finds no group 'patient'"),
        (["7/a.png"], {"grade_count": 5}, "folder '7' is not a grade"),
        (["masks/a.png"], {}, "contains only masks"),
    ],
)
def test_folder_refused(tmp_path, names, options, reason):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=reason):
        manifest_from_folder(tmp_path, **options)


def test_a_scan_does_not_leave_the_folder(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    touch(data, "train/2/1L.png")
    touch(other, "0/2R.png")
    (data / "train/2/again.png").symlink_to("1L.png")
    (data / "again").symlink_to("train")
    (data / ".store").mkdir()
    touch(data, ".store/kept.png")
    (data / "train/2/3L.png").symlink_to("../../.store/kept.png")
    assert manifest_from_folder(data)["image"].tolist() == ["train/2/1L.png", "train/2/3L.png"]
    (data / "train/2/2R.png").symlink_to(other / "0/2R.png")
    (data / "test").symlink_to(other)
    (data / "train/2/4L.png").symlink_to("gone.png")
    (data / "train/2/5L.png").symlink_to("5L.png")
    with pytest.raises(Faults, match="4 links lead out of the folder; put the files themselves there") as caught:
        manifest_from_folder(data)
    assert caught.value.faults == (
        f"test: is a link to {other}",
        f"train/2/2R.png: is a link to {other / '0/2R.png'}",
        "train/2/4L.png: is a link to nowhere",
        "train/2/5L.png: is a link to nowhere",
    )
    # Who writes a path in a manifest means it.
    path = written(tmp_path, "data/train/2/2R.png,1,R,2,", "other/0/2R.png,2,R,2,")
    assert len(read_manifest(path, KL).table) == 2


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "0/1L.png", "2/3L.png", "4/5L.png", ".git/7L.png")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name in ("2", "4", ".git"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(Faults, match="2 folders cannot be read, so patients may be missing") as caught:
        manifest_from_folder(tmp_path)
    assert caught.value.faults == (f"{tmp_path / '2'}: Permission denied", f"{tmp_path / '4'}: Permission denied")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_all_told(tmp_path):
    touch(tmp_path, "0/1L.png", "0/ä_L.png")
    for name in (b"M\xfcller_1.png", b"b\xe4/2.png", b"no\xe4.txt"):
        path = tmp_path / "0" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "0/1L.png").read_bytes())
    with pytest.raises(
        Faults, match="2 files whose names are not UTF-8 text, which a table cannot contain; rename"
    ) as caught:
        manifest_from_folder(tmp_path)
    assert caught.value.faults == (r"0/M\udcfcller_1.png", r"0/b\udce4/2.png")
    str(caught.value).encode()


def test_folders_that_the_toolkit_wrote_hold_no_images(tmp_path):
    touch(tmp_path, "2/1L.png", "0/2R.png")
    paths = [tmp_path / "2/1L.png", tmp_path / "0/2R.png"]
    cache = build_cache(paths, [None, None], tmp_path / "cache", size=8, progress=False)
    mark_as_own(tmp_path / "graded" / "overlays")
    touch(tmp_path, "graded/overlays/2/1L.png.png", "runs/one/figures/roc.png")
    (tmp_path / "runs/one/local").mkdir()
    (tmp_path / "runs/one/config.yaml").write_text("kind: grader\n")
    assert image_files(tmp_path) == ["0/2R.png", "2/1L.png"]
    assert manifest_from_folder(tmp_path)["image"].tolist() == ["0/2R.png", "2/1L.png"]
    # A cache that an earlier version wrote has no mark.
    (cache.folder / MARK).unlink()
    assert image_files(tmp_path) == ["0/2R.png", "2/1L.png"]
    # Who names such a folder means it, and an array of one's own may be called like one of a cache.
    assert len(image_files(tmp_path / "graded/overlays")) == 1
    np.save(tmp_path / "0" / "images.npy", np.arange(64.0).reshape(8, 8))
    assert len(image_files(tmp_path)) == 3


def test_grade_names_as_folders(tmp_path):
    touch(tmp_path, "Normal/1.png", "full-thickness/2.png")
    table = manifest_from_folder(tmp_path, grade_names=load_grade_set("cartilage").names)
    assert table["grade"].tolist() == [0, 2]


def test_split_slice(tmp_path):
    assert split_slice("a/v.nii#12")[1] == 12
    assert split_slice("a/v.nii") == (split_slice("a/v.nii#3")[0], None)
    assert split_slice("a/v#x.nii")[1] is None
    touch(tmp_path, "odd#3")
    assert split_slice(tmp_path / "odd#3") == (tmp_path / "odd#3", None)


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


def test_names_with_outer_spaces_are_told_since_no_table_keeps_them(tmp_path):
    touch(tmp_path, " 1_L.png", "2_L.png ", "3 3_L.png")
    (tmp_path / "2_L.png ").rename(tmp_path / "2_L .png")
    with pytest.raises(Faults, match="1 path beginning or ending with a space, which a table does not keep") as caught:
        manifest_from_folder(tmp_path)
    assert caught.value.faults == ("' 1_L.png'",)
