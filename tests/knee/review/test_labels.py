from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from knee.data.manifest import Manifest, read_manifest
from knee.errors import Faults, UserError
from knee.grades import load_grade_set
from knee.review.key import KeyedCase
from knee.review.labels import median_grade, reviewed_labels, write_labels

from .readings import GRADES, _verdict


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    lines = ["image,patient,side,grade,mask,split"]
    for name, grade in GRADES.items():
        (tmp_path / f"{name}.png").touch()
        lines.append(f"{name}.png,p{name},L,{grade},,{'test' if name == 'f' else 'train'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return read_manifest(tmp_path / "manifest.csv", load_grade_set("kl"))


def test_the_median_of_an_even_number_may_be_no_grade():
    assert median_grade([3]) == 3
    assert median_grade([0, 4, 1]) == 1
    assert median_grade([1, 1, 2, 4]) is None
    assert median_grade([1, 2, 2, 4]) == 2
    assert median_grade([1, 3]) is None  # never a 2 that nobody gave


def test_reviewed_grades_are_next_to_the_original_ones(manifest, key):
    labels = reviewed_labels(
        manifest,
        [
            *(_verdict("ca", 3, reader) for reader in ("R1", "R2")),  # recorded 1: corrected
            _verdict("cb", 4),  # ungraded: graded
            _verdict("cc", 3),  # confirmed
            _verdict("cd", 1, "R1"),  # undecided: 1 against 2
            _verdict("cd", 2, "R2"),
            _verdict("ce", 4, "R1", "bad_image"),  # half of the readers: bad image
            _verdict("ce", 4, "R2"),
        ],
        key,
    )
    assert labels.corrected == ("ca",) and labels.graded == ("cb",) and labels.confirmed == ("cc",)
    assert labels.undecided == ("cd",) and labels.bad_image == ("ce",) and labels.skipped == ()
    assert labels.table["grade"].fillna(-1).tolist() == [3, 4, 3, -1, 0, 2]
    assert labels.table["grade_original"].fillna(-1).tolist() == [1, -1, 3, -1, 0, 2]
    assert labels.table["review"].tolist() == ["corrected", "graded", "confirmed", "undecided", "bad_image", ""]
    assert labels.table["reviewers"].tolist()[:2] == ["R1;R2", "R1"]
    assert str(labels) == "1 graded, 1 corrected, 1 confirmed, 1 undecided, 1 bad image, 0 skipped"


def test_an_unsure_grade_is_not_a_label_and_the_latest_verdict_counts(manifest, key):
    labels = reviewed_labels(manifest, [_verdict("cb", 4, verdict="unsure")], key)
    assert labels.undecided == ("cb",)
    labels = reviewed_labels(manifest, [_verdict("cb", 4, day=2), _verdict("cb", 1, day=1)], key)
    assert labels.table["grade"].iat[1] == 4


def test_a_withdrawn_verdict_counts_as_none(manifest, key):
    said = [_verdict("ce", None, verdict="bad_image", day=1), _verdict("ce", None, verdict="", day=2)]
    assert reviewed_labels(manifest, said[:1], key).bad_image == ("ce",)
    labels = reviewed_labels(manifest, said, key)
    assert str(labels) == "0 graded, 0 corrected, 0 confirmed, 0 undecided, 0 bad image, 0 skipped"
    assert labels.table["reviewers"].eq("").all()


def test_held_out_cases_are_refused_by_name(manifest, key):
    with pytest.raises(Faults, match=r"case cf is of the test split.*--skip-held-out"):
        reviewed_labels(manifest, [_verdict("cf", 0), _verdict("cb", 1)], key)
    labels = reviewed_labels(manifest, [_verdict("cf", 0), _verdict("cb", 1)], key, skip_held_out=True)
    assert labels.skipped == ("cf",)
    assert labels.table["grade"].iat[5] == 2


def test_unknown_cases_are_refused(manifest, key):
    moved = key | {"cx": KeyedCase("cx", "gone.png", "p", "train", 0, 0)}
    with pytest.raises(Faults) as caught:
        reviewed_labels(manifest, [_verdict("cx", 0), _verdict("cy", 0)], moved)
    assert len(caught.value.faults) == 2


def test_a_new_version_of_the_manifest_is_read_again(manifest, key, tmp_path):
    labels = reviewed_labels(manifest, [_verdict("cb", 4)], key)
    write_labels(tmp_path / "runs" / "reviewed.csv", manifest, labels)
    again = read_manifest(tmp_path / "runs" / "reviewed.csv", load_grade_set("kl"))
    assert again.image_path(1).resolve() == tmp_path / "b.png"
    assert again.table["grade"].iat[1] == 4
    later = reviewed_labels(
        again, [_verdict("cb", 2)], {"cb": KeyedCase("cb", again.table["image"].iat[1], "pb", "train", 0, 0)}
    )
    assert later.table["grade_original"].tolist()[:2] == ["1", ""], "the first original stays"
    with pytest.raises(UserError, match="exists already"):
        write_labels(tmp_path / "runs" / "reviewed.csv", manifest, labels)
    with pytest.raises(UserError, match="is the reviewed manifest itself"):
        write_labels(manifest.path, manifest, labels, force=True)


def test_a_new_version_in_a_linked_folder_names_images_that_are_there(manifest, key, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    write_labels(tmp_path / "near" / "reviewed.csv", manifest, reviewed_labels(manifest, [_verdict("cb", 4)], key))
    again = read_manifest(tmp_path / "near" / "reviewed.csv", load_grade_set("kl"))
    assert again.image_path(1).resolve() == tmp_path / "b.png"
    (tmp_path / "linked").symlink_to(tmp_path)
    linked = read_manifest(tmp_path / "linked" / "manifest.csv", load_grade_set("kl"))
    write_labels(tmp_path / "far" / "reviewed.csv", linked, reviewed_labels(linked, [_verdict("cb", 4)], key))
    again = read_manifest(tmp_path / "far" / "reviewed.csv", load_grade_set("kl"))
    assert again.image_path(1).resolve() == tmp_path / "b.png"


def test_a_volume_is_graded_as_a_whole(manifest, key):
    table = manifest.table.assign(series=["", "knee", "", "knee", "", ""])
    (case,) = [name for name in key if key[name].image == "b.png"]
    labels = reviewed_labels(replace(manifest, table=table), [_verdict(case, 4)], key)
    assert labels.graded == (case,)
    assert labels.table["grade"].fillna(-1).tolist() == [1, 4, 3, 4, 0, 2]
    assert labels.table["review"].tolist() == ["", "graded", "", "graded", "", ""]
