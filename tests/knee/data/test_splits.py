"""Splits: leak-free, nested and stratified whatever the table; refusals name who and what."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.data.manifest import Manifest
from knee.data.splits import (
    Split,
    check_split,
    labeled_rows,
    make_split,
    read_split,
    refuse_shared_pictures,
    unlabeled_rows,
    write_split,
)
from knee.errors import Faults, UserError
from knee.io.shared_array import facts_of

from .samples import KL, as_manifest, tables


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 100), st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_labeled_subsets_are_nested_and_of_their_share(manifest, seed, fractions):
    frame = make_split(manifest.table, fractions=(0.8, 0.1, 0.1), seed=seed)
    split = Split(Path("s.csv"), frame)
    train = split.rows("train")
    graded = {int(i) for i in train if manifest.table["grade"].notna().iat[i]}
    before: set[int] = set()
    for fraction in sorted(fractions):
        unlabeled = {int(i) for i in unlabeled_rows(split, manifest, fraction)}
        assert unlabeled <= set(train.tolist())
        labeled = set(train.tolist()) - unlabeled
        assert before <= labeled <= graded
        before = labeled
        highest = manifest.table["grade"].fillna(-1).groupby(manifest.table["patient"]).max()
        ranks = frame["rank"].groupby(manifest.table["patient"]).first()
        training = manifest.table["patient"].iloc[train].unique()
        for grade in range(-1, 5):
            stratum = [p for p in training if highest[p] == grade]
            assert abs(sum(ranks[p] < fraction for p in stratum) - fraction * len(stratum)) < 1 + 1e-5
        if labeled:
            rows = labeled_rows(split, manifest, fraction, grade_set=KL, allow_missing_grades=True)
            assert set(rows.tolist()) == labeled


def test_written_and_read(tmp_path):
    manifest = as_manifest([i // 2 for i in range(60)], [i % 5 for i in range(60)])
    frame = make_split(manifest.table, seed=1)
    path = tmp_path / "s.csv"
    write_split(path, frame)
    pd.testing.assert_frame_equal(read_split(path, manifest).frame, frame)
    with pytest.raises(UserError, match="exists already"):
        write_split(path, frame)
    # Rows of the manifest in another order, some dropped, and the images in another folder.
    table = manifest.table.iloc[::-3].reset_index(drop=True)
    moved = Manifest(manifest.path, table.assign(image="../" + table["image"]))
    got = read_split(path, moved).frame
    assert got["split"].tolist() == frame["split"].iloc[::-3].tolist()
    assert got["image"].tolist() == moved.table["image"].tolist()


def test_leakage_is_refused_naming_the_patients(tmp_path):
    manifest = as_manifest(["p1", "p1", "p2", "p3", "p3"], [0] * 5)
    frame = pd.DataFrame(
        {"image": manifest.table["image"], "split": ["train", "test", "val", "train", "train"], "rank": 0.5}
    )
    write_split(tmp_path / "s.csv", frame)
    with pytest.raises(Faults, match=r"s\.csv: 1 error; fix them, or make a new split with dcmt split") as caught:
        read_split(tmp_path / "s.csv", manifest)
    assert caught.value.faults == ("patient 'p1' is in more than one split: train ('d/0.png') and test ('d/1.png')",)
    frame["split"], frame["rank"] = "train", [0.1, 0.2, 0.3, 0.4, 0.4]
    with pytest.raises(Faults, match="patient 'p1'"):
        check_split(frame, manifest)
    with pytest.raises(UserError, match="has 4 rows, the manifest 5"):
        check_split(frame.iloc[:4], manifest)


def test_all_faults_of_a_split_file(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("image,split,rank\nd/0.png,dev,0.5\nd/0.png,train,1.0\nd/1.png,val,nan\nd/2.png,val,x\n")
    with pytest.raises(Faults) as caught:
        manifest = as_manifest(["a", "b", "a", "c"], [0] * 4)
        read_split(path, dataclasses.replace(manifest, table=manifest.table.iloc[[0, 2, 3]].reset_index(drop=True)))
    text = str(caught.value)
    for part in (
        "line 2: split 'dev'",
        "line 3: rank '1.0' is not a number",
        "line 4: rank 'nan' is not a number",
        "line 5: rank 'x' is not a number",
        "line 3: image 'd/0.png' is on line 2 already",
        "manifest.csv line 5: image 'd/3.png' is not in the split",
        "patient 'a' is in more than one split: train ('d/0.png') and val ('d/2.png')",
    ):
        assert part in text
    path.write_text("image,split,rank\nd/0.png,train,0.5\n")
    with pytest.raises(Faults, match="1 error") as caught:
        read_split(path, as_manifest(["a", "b"], [0, 0]))
    assert caught.value.faults == ("manifest.csv line 3: image 'd/1.png' is not in the split",)
    path.write_text("image,split\n")
    with pytest.raises(Faults, match="column 'rank' is missing"):
        read_split(path, as_manifest(["a"], [0]))


def test_rows_left_out_need_no_place_but_keep_their_patient_together(tmp_path):
    manifest = as_manifest(["a", "a", "b", "c"], [0] * 4)
    path = tmp_path / "s.csv"
    path.write_text("image,split,rank\nd/0.png,train,0.5\nd/1.png,train,0.5\nd/3.png,test,0.1\n")
    split = read_split(path, manifest, without={2, 4})
    assert split.frame["image"].tolist() == ["d/1.png", "d/3.png"]
    assert split.rows("test").tolist() == [1]
    path.write_text("image,split,rank\nd/0.png,test,0.5\nd/1.png,train,0.5\nd/2.png,val,0.2\nd/3.png,test,0.1\n")
    with pytest.raises(Faults, match="patient 'a' is in more than one split"):
        read_split(path, manifest, without={2})


def test_rows_left_out_do_not_change_what_the_others_are_called(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("image,split,rank\n1.png,test,0.1\nin/1.png,train,0.2\n")
    manifest = as_manifest(["a", "b"], [0, 0])
    manifest.table["image"] = ["moved/1.png", "moved/in/1.png"]
    assert read_split(path, manifest, without={2}).frame["split"].tolist() == ["train"]


def ranked(grades, ranks):
    manifest = as_manifest(range(len(grades)), grades)
    frame = pd.DataFrame({"image": manifest.table["image"], "split": "train", "rank": ranks})
    return Split(Path("s.csv"), frame), manifest


def test_labeled_refusals_name_the_way_out():
    split, manifest = ranked([0, 1, 2, 3, 4, None], [0.1, 0.2, 0.3, 0.4, 0.5, 0.0])
    assert labeled_rows(split, manifest, 1, grade_set=KL).tolist() == [0, 1, 2, 3, 4]
    assert unlabeled_rows(split, manifest, 1).tolist() == [5]
    assert labeled_rows(split, manifest, 0.5001, grade_set=KL).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"no image of grade 3 \(moderate\), 4 \(severe\); the smallest .* is 0.5001"):
        labeled_rows(split, manifest, 0.35, grade_set=KL)
    assert labeled_rows(split, manifest, 0.35, grade_set=KL, allow_missing_grades=True).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"leaves no graded training image; the smallest that leaves one is 0.1001"):
        labeled_rows(split, manifest, 0.1, grade_set=KL)
    for fraction in (0, -1, 1.01, math.nan):
        with pytest.raises(UserError, match="not above 0 and at most 1"):
            labeled_rows(split, manifest, fraction, grade_set=KL)


def test_no_fraction_can_help():
    split, manifest = ranked([0, 1], [0.1, 0.2])
    with pytest.raises(UserError, match="no fraction has them all"):
        labeled_rows(split, manifest, 1, grade_set=KL)
    split, manifest = ranked([None, None], [0.1, 0.2])
    with pytest.raises(UserError, match="no training image has a grade"):
        labeled_rows(split, manifest, 1, grade_set=KL)


def test_reviewed_grades_train_whatever_the_rank():
    split, manifest = ranked([0, 1, 2, 3, 4, 0, 1, None], [0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9])
    manifest.table["review"] = ["", "", "", "graded", "corrected", "confirmed", "undecided", "bad_image"]
    assert labeled_rows(split, manifest, 0.2, grade_set=KL).tolist() == [0, 1, 2, 3, 4, 5]
    assert unlabeled_rows(split, manifest, 0.2).tolist() == [6, 7]
    split.frame["split"] = ["train"] * 5 + ["test"] * 3  # a reviewed grade brings no held-out row into training
    assert labeled_rows(split, manifest, 0.2, grade_set=KL).tolist() == [0, 1, 2, 3, 4]


def test_unknown_split_name():
    split, _ = ranked([0], [0.1])
    with pytest.raises(UserError, match="write one of train, val, test"):
        split.rows("dev")


SIX = pd.DataFrame({"image": [f"{number}.png" for number in range(6)], "line": range(2, 8)})


def split_of(**rows: list[int]) -> Any:
    return SimpleNamespace(rows=lambda name: np.array(rows.get(name, []), dtype=np.int64))


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)


def test_a_picture_in_two_splits_is_refused_by_line_and_file() -> None:
    images = pictures()
    images[4] = images[1]
    split = split_of(train=[0, 1, 2], val=[3], test=[4, 5])
    with pytest.raises(Faults, match=r"m\.csv: 1 pictures are in two splits") as caught:
        refuse_shared_pictures(facts_of(images)["digest"], split, SIX, where="m.csv")
    assert caught.value.faults == ("line 3 (train): 1.png; line 6 (test): 4.png",)


def test_copies_within_a_split_blank_images_and_unused_rows_are_no_leak() -> None:
    images = pictures()
    images[1] = images[0]  # both train
    images[3] = images[5] = 7  # nothing to see, in val and test
    images[4] = images[2]  # row 4 is in no split
    refuse_shared_pictures(facts_of(images)["digest"], split_of(train=[0, 1, 2], val=[3], test=[5]), SIX, where="m.csv")
    with pytest.raises(Faults, match="1 pictures are in two splits"):  # the same pictures, row 4 in a split now
        refuse_shared_pictures(
            facts_of(images)["digest"], split_of(train=[0, 1, 2], val=[3], test=[4, 5]), SIX, where="m.csv"
        )
