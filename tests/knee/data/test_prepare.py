"""From a data config to data: what is refused, with which words, and what the streams hold."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from dcmt.config import GraderConfig
from knee.data.prepare import KneeData, TrainingBatches, describe, drawn_rows, load_knee_data
from knee.data.views import ViewConfig
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.task import Batch

Make = Callable[..., GraderConfig]


class Copy:
    """A copy of the phantom that a test may spoil."""

    def __init__(self, folder: Path, make: Make) -> None:
        self.folder = folder
        self._make = make

    def change(self, name: str, edit: Callable[[pd.DataFrame], None]) -> None:
        table = pd.read_csv(self.folder / name, dtype=str, keep_default_na=False)
        edit(table)
        table.to_csv(self.folder / name, index=False)

    def load(self, *, rejected: Path | None = None, **changes: Any) -> KneeData:
        manifest, split = str(self.folder / "manifest.csv"), str(self.folder / "split.csv")
        config = self._make(**{"data.manifest": manifest, "data.split": split, **changes})
        return load_knee_data(config.data, rejected=rejected)


@pytest.fixture
def copy(phantom: Path, tmp_path: Path, grader_config: Make) -> Copy:
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache", "truth*", ".*"))
    return Copy(tmp_path / "data", grader_config)


def first(copy: Copy, split: str, *, masked: bool = False) -> str:
    table = pd.read_csv(copy.folder / "manifest.csv", dtype=str, keep_default_na=False)
    chosen = table[table["split"].eq(split) & (table["mask"].ne("") | (not masked))]
    return str(chosen["image"].iloc[0])


def test_missing_images_are_all_named(copy: Copy) -> None:
    names = ["P0001_00.png", "P0003_02.png"]
    for name in names:
        (copy.folder / "images" / name).unlink()
    with pytest.raises(UserError) as caught:
        copy.load()
    assert all(name in str(caught.value) for name in names)


def test_unreadable_image_is_named_with_its_reason(copy: Copy) -> None:
    path = copy.folder / "images" / "P0001_00.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"P0001_00\.png"):
        copy.load()


def test_mask_of_another_size_is_named(copy: Copy) -> None:
    name = Path(first(copy, "test", masked=True)).name
    cv2.imwrite(str(copy.folder / "masks" / name), np.zeros((30, 31), np.uint8))
    with pytest.raises(UserError, match=rf"{name}.*31 × 30"):
        copy.load()


def test_patient_in_two_splits_is_named(copy: Copy) -> None:
    moved = first(copy, "train")

    def edit(table: pd.DataFrame) -> None:
        table.loc[table["image"] == moved, ["split", "rank"]] = ["test", ""]

    copy.change("split.csv", edit)
    with pytest.raises(UserError, match=Path(moved).name.partition("_")[0]):
        copy.load()


def test_grade_that_is_none_is_named_by_line(copy: Copy) -> None:
    copy.change("manifest.csv", lambda table: table.__setitem__("grade", ["KL2", *table["grade"][1:]]))
    with pytest.raises(UserError, match=r"line 2.*KL2"):
        copy.load()


def test_labeled_subset_without_a_grade_is_refused_unless_told(copy: Copy) -> None:
    copy.change("manifest.csv", lambda table: table.__setitem__("grade", table["grade"].replace("2", "1")))
    with pytest.raises(UserError, match="2"):
        copy.load(**{"data.labeled_fraction": 1.0})
    data = copy.load(**{"data.labeled_fraction": 1.0, "data.allow_missing_grades": True})
    assert set(data.grades[data.labeled]) == {0, 1}


def test_fraction_that_leaves_nothing_is_refused(copy: Copy) -> None:
    with pytest.raises(UserError, match="fraction"):
        copy.load(**{"data.labeled_fraction": 1e-6})


def test_skipping_bad_rows_lists_them_and_goes_on(copy: Copy, tmp_path: Path) -> None:
    (copy.folder / "images" / "P0001_00.png").write_bytes(b"no image")
    with pytest.raises(UserError):
        copy.load(rejected=tmp_path / "rejected.csv")
    whole = len(pd.read_csv(copy.folder / "manifest.csv"))
    data = copy.load(rejected=tmp_path / "rejected.csv", **{"data.skip_bad": True})
    assert len(data.manifest.table) == len(data.cache.images) == whole - 1
    assert "P0001_00.png" in (tmp_path / "rejected.csv").read_text()
    assert "images/P0001_00.png" not in set(data.manifest.table["image"])


def test_rows_by_role_do_not_meet(copy: Copy) -> None:
    data = copy.load()
    assert not set(data.labeled) & set(data.unlabeled)
    train = set(data.split.rows("train"))
    assert set(data.labeled) | set(data.unlabeled) == train
    assert not train & set(data.split.rows("test"))
    assert not set(data.patients.iloc[data.labeled]) & set(data.patients.iloc[data.unlabeled])
    assert np.array_equal(data.rows("unlabeled"), data.unlabeled)


def test_labeled_rows_are_the_same_whether_asked_for_or_not(copy: Copy, grader_config: Make) -> None:
    data = copy.load()
    config = grader_config(**{"data.manifest": str(data.manifest.path), "data.split": str(data.split.path)})
    assert load_knee_data(config.data, graded=False).labeled.tolist() == data.labeled.tolist()


def test_fewer_labels_are_among_the_more(copy: Copy) -> None:
    few, many = copy.load(**{"data.labeled_fraction": 0.5}), copy.load(**{"data.labeled_fraction": 1.0})
    assert set(few.labeled) < set(many.labeled)
    assert not len(many.unlabeled)


def test_case_names_say_nothing_and_stay(copy: Copy) -> None:
    data = copy.load()
    names = data.cases(data.split.rows("val"))
    assert len(set(names)) == len(names)
    assert not [name for name in names if "P0" in name]
    assert copy.load().cases(data.split.rows("val")) == names


def test_pixels_have_a_hash_of_their_own(copy: Copy) -> None:
    before = copy.load().cache.pixels_sha256
    assert copy.load().cache.pixels_sha256 == before
    path = copy.folder / "images" / "P0001_00.png"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    image[10, 10] = 255 - image[10, 10]
    cv2.imwrite(str(path), image)
    assert copy.load().cache.pixels_sha256 != before


def make_batches(data: KneeData, config: GraderConfig, **changes: Any) -> TrainingBatches:
    options: dict[str, Any] = {
        "rows": data.labeled,
        "unlabeled": data.unlabeled,
        "dilation": 0.0,
        "seed": 3,
        "device": torch.device("cpu"),
        "channels_last": False,
    }
    return TrainingBatches(data, config.data, config.views, **{**options, **changes})


def take(batches: TrainingBatches, start: int, count: int) -> list[Batch]:
    stream = batches.from_batch(start)
    return [next(stream) for _ in range(count)]


def test_batches_from_any_point_are_those_of_the_whole_run(copy: Copy, grader_config: Make) -> None:
    data, config = copy.load(), grader_config()
    batches = make_batches(data, config)
    whole = take(batches, 0, 2 * batches.per_epoch + 2)
    for start in (1, batches.per_epoch - 1, batches.per_epoch, batches.per_epoch + 2):
        for ours, theirs in zip(take(make_batches(data, config), start, 2), whole[start:], strict=False):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_nothing_of_the_unlabeled_images_but_pixels_is_in_a_batch(copy: Copy, grader_config: Make) -> None:
    batch = take(make_batches(copy.load(), grader_config()), 0, 1)[0]
    assert len(batch.student) == len(batch.teacher) == 6
    assert len(batch.grades) == len(batch.masks) == len(batch.has_mask) == 4
    assert batch.student.dtype == torch.float32
    assert 0 <= batch.student.min() <= batch.student.max() <= 1


def test_description_counts_what_is_there(copy: Copy, grader_config: Make) -> None:
    data = copy.load()
    lines = describe(data, grader_config().data)
    assert f"{len(data.manifest.table)} images: {len(data.split.rows('train'))} train" in lines[0]
    assert f"labeled: {len(data.labeled)} images" in lines[1]
    assert f"unlabeled: {len(data.unlabeled)}" in lines[1]


def test_validation_that_cannot_tell_the_best_checkpoint_is_told(copy: Copy, grader_config: Make) -> None:
    def said() -> list[str]:
        return [line for line in describe(dataclasses.replace(copy.load(), grade_set=grades), config) if "best" in line]

    config = grader_config().data
    grades = load_grade_set("cartilage")
    assert said() == []
    copy.change(
        "manifest.csv", lambda table: table.__setitem__("grade", table["grade"].mask(table["split"] == "val", "1"))
    )
    assert said() == [], "macro F1 is defined for one grade"
    for metric in ("kappa", "auc"):
        grades = dataclasses.replace(grades, best_metric=metric)
        (line,) = said()
        assert line.startswith(f"all graded validation images are of grade 1, where {metric} cannot distinguish models")
    copy.change(
        "manifest.csv", lambda table: table.__setitem__("grade", table["grade"].mask(table["split"] == "val", ""))
    )
    (line,) = said()
    assert line.startswith("no graded validation images: nothing is measured")


def test_too_few_masks_are_told(copy: Copy) -> None:
    copy.change("manifest.csv", lambda table: table.__setitem__("mask", ""))
    data = copy.load()
    with pytest.raises(UserError, match=r"0 of \d+ rows have a drawn mask, at least 2 are needed"):
        drawn_rows(data, data.split.rows("train"), least=2)


def test_views_of_the_config_are_those_used(copy: Copy, grader_config: Make) -> None:
    data = copy.load()
    still = ViewConfig(**dict.fromkeys(ViewConfig.__dataclass_fields__, 0) | {"teacher_photometric": "none"})
    batches = TrainingBatches(
        data,
        grader_config().data,
        still,
        rows=data.labeled[:4],
        unlabeled=data.unlabeled[:2],
        dilation=0.0,
        seed=0,
        device=torch.device("cpu"),
        channels_last=False,
    )
    batch = take(batches, 0, 1)[0]
    wanted = {data.cache.images[row].tobytes() for row in (*data.labeled[:4], *data.unlabeled[:2])}
    assert {(image * 255).round().to(torch.uint8).numpy().tobytes() for image in batch.student} == wanted


def test_the_cache_folder_of_a_run_is_used_only_if_it_holds_a_cache(grader_config, tmp_path, said):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    config = grader_config(**{"data.cache": str(folder)}).data
    load_knee_data(config, of_run=True)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    assert any("holds no cache of images" in line for line in said)
    load_knee_data(config)  # of the user's own config
    (made,) = (path for path in folder.iterdir() if path.is_dir())
    before = made.stat().st_mtime_ns
    assert load_knee_data(config, of_run=True).cache.images.shape[1] == config.image_size
    assert made.stat().st_mtime_ns == before
