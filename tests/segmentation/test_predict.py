"""Masks from a segmenter: drawn ones are kept, new ones lie on the original pixels, nothing is overwritten unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from knee.data.manifest import Manifest, read_manifest
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.images.geometry import Geometry, prepare
from knee.images.read import read_mask
from segmentation.predict import Segmented, mask_names, segment_rows, write_masks

SIZE = 32
SHAPES = [(40, 60), (64, 64), (50, 30)]


class Bright(nn.Module):
    """Cartilage is what is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] - 0.5) * 20


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Three images of different shapes with a bright bar; the last one has a drawn mask."""
    for number, (height, width) in enumerate(SHAPES):
        image = np.full((height, width), 20, np.uint8)
        image[height // 4 : height // 2, width // 4 : width // 2] = 240
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    cv2.imwrite(str(tmp_path / "drawn.png"), np.zeros(SHAPES[2], np.uint8))
    rows = ["image,patient,side,grade,mask", "0.png,a,,0,", "1.png,b,,1,", "2.png,c,,2,drawn.png"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return read_manifest(tmp_path / "manifest.csv", load_grade_set("cartilage"))


@pytest.fixture
def prepared(manifest: Manifest) -> tuple[list[np.ndarray], Callable[[int], Geometry]]:
    """Prepared images and the way back."""
    images, geometries = [], []
    for row in range(len(SHAPES)):
        image, geometry = prepare(
            cv2.imread(str(manifest.image_path(row)), cv2.IMREAD_GRAYSCALE).astype(np.float32), SIZE
        )
        images.append(image)
        geometries.append(geometry)
    return images, geometries.__getitem__


def segment(images: list[np.ndarray], rows: list[int]) -> list[Segmented]:
    batch = torch.from_numpy(np.stack([images[row] for row in rows])[:, None]), torch.tensor(rows)
    return list(segment_rows(Bright(), [batch], device=torch.device("cpu")))


def test_masks_probabilities_and_confidence_agree(prepared) -> None:
    (found,) = segment(prepared[0], [0, 1])
    assert found.rows.tolist() == [0, 1]
    assert found.masks.dtype == np.uint8
    assert np.array_equal(found.masks, (found.probabilities > 0.5).astype(np.uint8))
    for mask, probabilities, sure in zip(found.masks, found.probabilities, found.confidence, strict=True):
        assert sure == pytest.approx(probabilities[mask > 0].mean(), rel=1e-6)


def test_nothing_found_has_no_confidence() -> None:
    (found,) = segment([np.zeros((SIZE, SIZE), np.uint8)], [0])
    assert found.masks.sum() == 0
    assert found.confidence.tolist() == [0.0]


def test_training_mode_is_put_back() -> None:
    network = Bright()
    for training in (True, False):
        network.train(training)
        list(segment_rows(network, [(torch.zeros(1, 1, 4, 4), torch.tensor([0]))], device=torch.device("cpu")))
        assert network.training is training


def test_masks_lie_on_the_original_pixels_and_drawn_ones_stay(manifest: Manifest, prepared, tmp_path: Path) -> None:
    images, geometry = prepared
    (tmp_path / "out").mkdir()
    table = write_masks(
        segment(images, [0, 1]), manifest, geometry, folder=tmp_path / "masks", relative_to=tmp_path / "out"
    )
    assert table["mask_source"].tolist() == ["segmenter", "segmenter", "drawn"]
    assert "line" not in table
    for row, (height, width) in enumerate(SHAPES[:2]):
        mask = read_mask(tmp_path / "out" / table["mask"].iat[row])
        assert mask.shape == (height, width)
        true = np.zeros((height, width), bool)
        true[height // 4 : height // 2, width // 4 : width // 2] = True
        assert (mask & true).sum() / (mask | true).sum() > 0.75
        assert 0.5 < float(table["mask_confidence"].iat[row]) <= 1
    assert (tmp_path / "out" / table["mask"].iat[2]).resolve() == (tmp_path / "drawn.png").resolve()
    assert (tmp_path / "out" / table["image"].iat[0]).resolve() == (tmp_path / "0.png").resolve()


def test_paths_lead_to_the_files_from_a_folder_behind_a_link(manifest: Manifest, prepared, tmp_path: Path) -> None:
    images, geometry = prepared
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "away")
    manifest.table.loc[1, "image"] = str(tmp_path / "1.png")
    table = write_masks(
        segment(images, [0, 1]), manifest, geometry, folder=tmp_path / "out" / "masks", relative_to=tmp_path / "out"
    )
    for column in ("image", "mask"):
        assert all((tmp_path / "out" / name).is_file() for name in table[column])
    assert table["image"].iat[1] == str(tmp_path / "1.png"), "an absolute path stays"
    assert table["mask"].iat[0] == "masks/0.png"


def test_masks_are_not_overwritten_unasked(manifest: Manifest, prepared, tmp_path: Path) -> None:
    images, geometry = prepared

    def write(*, force: bool = False) -> pd.DataFrame:
        found = segment(images, [0])
        return write_masks(found, manifest, geometry, folder=tmp_path / "masks", relative_to=tmp_path, force=force)

    write()
    (tmp_path / "masks" / "0.png").write_bytes(b"corrected by hand")
    with pytest.raises(UserError, match=r"0\.png"):
        write()
    assert (tmp_path / "masks" / "0.png").read_bytes() == b"corrected by hand"
    write(force=True)


@pytest.mark.parametrize("force", [False, True])
def test_masks_never_take_the_place_of_images_or_drawn_masks(
    force: bool, manifest: Manifest, prepared, tmp_path: Path
) -> None:
    images, geometry = prepared
    before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "masks").mkdir()
    for row in range(2):
        (tmp_path / "masks" / f"{row}.png").symlink_to(tmp_path / "drawn.png")
    for folder in ("", "link", "masks"):
        with pytest.raises(UserError, match=r"0\.png is an image or a drawn mask of .*--out"):
            write_masks(
                segment(images, [0, 1]),
                manifest,
                geometry,
                folder=tmp_path / folder,
                relative_to=tmp_path,
                force=force,
            )
    assert {path: path.read_bytes() for path in tmp_path.glob("*.png")} == before


def test_dilation_enlarges_what_is_written(manifest: Manifest, prepared, tmp_path: Path) -> None:
    images, geometry = prepared
    areas = []
    for dilation in (0.0, 30.0):
        folder = tmp_path / f"masks{dilation}"
        write_masks(segment(images, [1]), manifest, geometry, folder=folder, relative_to=tmp_path, dilation=dilation)
        areas.append(read_mask(folder / "1.png").sum())
    assert areas[1] > areas[0]


def test_images_alike_in_name_get_masks_of_their_own(tmp_path: Path) -> None:
    names = mask_names(["a/b.png", "a_b.png", "c.png", "c.jpg", "../d/e.png", "v.nii.gz#1", "v.nii.gz#2"])
    assert len(set(names)) == len(names)
    assert all(name.endswith(".png") and "/" not in name and not name.startswith((".", "_")) for name in names)
    assert mask_names(["../../a/.b.png", ".c.png"]) == ["a_.b.png", "c.png"]


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["1.png", "1.dcm", "1_0.png"], ["1_0_0.png", "1_1.png", "1_0.png"]),
        (["1_0.png", "1.png", "1.dcm"], ["1_0.png", "1_1.png", "1_2.png"]),
        (["1.png", "1.dcm", "1_0.png", "1_0.dcm"], ["1_0.png", "1_1.png", "1_0_2.png", "1_0_3.png"]),
        (["1.png", "1.dcm", "1_0.png", "1_0_0.png"], ["1_0_0_0.png", "1_1.png", "1_0.png", "1_0_0.png"]),
    ],
)
def test_name_made_for_one_mask_is_not_that_of_another(images: list[str], names: list[str]) -> None:
    assert mask_names(images) == names
