"""Folders of known layouts become manifests; masks are matched, ambiguous folders refused."""

import pandas as pd
import pytest

from knee.data.manifest import read_manifest, write_manifest
from knee.errors import Faults, UserError
from knee.intake.folders import manifest_from_folder

from .samples import KL, touch


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


def test_masks_next_to_a_folder_of_images_belong_to_it(tmp_path):
    touch(tmp_path, "images/1_L.png", "images/2_L.png", "masks/1_L.png", "masks/gone.png", "masks/images/2_L.png")
    table = manifest_from_folder(tmp_path)
    assert table["mask"].tolist() == ["masks/1_L.png", "masks/images/2_L.png"]
    (note,) = [note for note in table.attrs["notes"] if "in masks" in note]
    assert note.startswith(
        "1 file in masks fits no image ('masks/gone.png' first); a mask must have the path of its image"
    )


def test_a_mask_that_matches_two_images_is_used_for_neither_and_noted(tmp_path):
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


def test_plain_folder_is_ungraded_and_notes_how_patients_were_named(tmp_path):
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


def test_names_with_outer_spaces_are_listed_since_no_table_keeps_them(tmp_path):
    touch(tmp_path, " 1_L.png", "2_L.png ", "3 3_L.png")
    (tmp_path / "2_L.png ").rename(tmp_path / "2_L .png")
    with pytest.raises(Faults, match="1 path beginning or ending with a space, which a table does not keep") as caught:
        manifest_from_folder(tmp_path)
    assert caught.value.faults == ("' 1_L.png'",)
