"""The phantom on disk: manifest, masks, split, truth, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from knee.errors import UserError
from knee.phantom import draw_mr_slice, write_phantom
from knee.phantom.write import masked_slices, split_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("phantom") / "new"
    assert write_phantom(where, patients=8, slices=4, size=48, seed=3, drawn_masks=5) == where / "manifest.csv"
    return where


def test_manifest_names_every_image_once(folder: Path) -> None:
    table = pd.read_csv(folder / "manifest.csv")
    assert list(table) == ["image", "patient", "side", "grade", "mask", "split", "spacing_mm"]
    assert len(table) == 32 and table.image.is_unique
    assert sorted(table.image) == sorted(f"images/{path.name}" for path in (folder / "images").iterdir())
    assert (table.groupby("patient").split.nunique() == 1).all()
    assert (table.groupby("patient").side.nunique() == 1).all()
    assert set(table.split) == {"train", "val", "test"}


def test_masks_for_a_few_training_slices_and_all_others(folder: Path) -> None:
    table = pd.read_csv(folder / "manifest.csv")
    has = table["mask"].notna()
    assert has[table.split == "train"].sum() == 5
    assert table[has & (table.split == "train")].patient.nunique() == 5
    assert has[table.split != "train"].all()
    for name in table.loc[has, "mask"]:
        mask = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (48, 48) and set(np.unique(mask)) == {0, 255}
        assert np.array_equal(mask, cv2.imread(str(folder / "truth" / Path(name).name), cv2.IMREAD_UNCHANGED))
    assert len(list((folder / "truth").iterdir())) == 32


def test_files_are_what_is_drawn(folder: Path) -> None:
    table, truth = pd.read_csv(folder / "manifest.csv"), pd.read_csv(folder / "truth.csv")
    assert truth.image.tolist() == table.image.tolist() and truth.grade.tolist() == table.grade.tolist()
    picture = draw_mr_slice(seed=3, patient=6, index=2, slices=4, size=48)
    row = 6 * 4 + 2
    assert np.array_equal(cv2.imread(str(folder / table.image[row]), cv2.IMREAD_UNCHANGED), picture.image)
    assert truth.lesion_depth[row] == pytest.approx(picture.truth.lesion_depth)


def test_the_truth_is_not_in_the_manifest(folder: Path) -> None:
    assert "truth" not in (folder / "manifest.csv").read_text(encoding="utf-8")


def test_refuses_a_folder_that_holds_something(folder: Path, tmp_path: Path) -> None:
    before = (folder / "manifest.csv").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        write_phantom(folder, patients=3, slices=1, size=32)
    assert (folder / "manifest.csv").read_bytes() == before
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        write_phantom(tmp_path / "note.txt", patients=3, slices=1, size=32)
    write_phantom(tmp_path, patients=3, slices=1, size=32, force=True)
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "mine"


def test_refuses_all_bad_numbers_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        write_phantom(tmp_path / "new", kind="ct", patients=2, slices=0, size=8, seed=-1, drawn_masks=-1)  # type: ignore[arg-type]
    for word in ("kind", "patients", "slices", "size", "seed", "drawn_masks"):
        assert word in str(told.value)
    assert not (tmp_path / "new").exists()


def test_radiographs(tmp_path: Path) -> None:
    write_phantom(tmp_path / "new", kind="xray", patients=4, size=48, seed=1, drawn_masks=2)
    table, truth = pd.read_csv(tmp_path / "new/manifest.csv"), pd.read_csv(tmp_path / "new/truth.csv")
    assert table.side.tolist() == ["L", "R"] * 4 and table.grade.between(0, 4).all()
    assert truth.joint_space_medial_mm.between(0, 9).all()
    assert table.spacing_mm.unique().tolist() == [round(98 / 48, 4)]


def test_the_default_split_is_1600_240_480() -> None:
    sizes = pd.Series([split_of(patient, 290) for patient in range(290)]).value_counts() * 8
    assert sizes.to_dict() == {"train": 1600, "val": 240, "test": 480}
    assert [split_of(patient, 3) for patient in range(3)] == ["train", "val", "test"]


def test_drawn_masks_are_spread_over_patients() -> None:
    chosen = masked_slices(200, 8, 40)
    assert len(chosen) == len({patient for patient, _ in chosen}) == 40
    assert {index for _, index in chosen} == set(range(8))
    assert len(masked_slices(3, 2, 40)) == 6
    assert masked_slices(3, 2, 0) == set()
