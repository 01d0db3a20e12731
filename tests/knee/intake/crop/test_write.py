"""What is written for a folder of films: names, pixels, rows, contact sheets."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from knee.intake.crop.write import as_stored, crop_images, crop_names
from knee.phantom.scenes import draw_scene


def table(*rows: tuple[str, str, str, int | None]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["image", "patient", "side", "grade"])
    found["grade"] = found["grade"].astype("Int64")
    return found.assign(mask="", split="train")


def test_names_have_the_patient_and_never_collide() -> None:
    assert crop_names(table(("a.png", "7", "", 0), ("b.png", "8", "", 0))) == ["7", "8"]
    twice = crop_names(table(("a/x.png", "7", "", 0), ("a-x.png", "7", "", 0), ("b.dcm", "P/8", "", 0)))
    assert twice == ["7/a-x", "7/a-x-2", "P-8/b"]


def test_grey_values_are_kept_or_scaled_to_sixteen_bits() -> None:
    for high, kind in ((255, np.uint8), (256, np.uint16), (65535, np.uint16)):
        values = np.array([[0, 3, high]], np.float32)
        assert as_stored(values).dtype == kind
        assert np.array_equal(as_stored(values), values)
    assert as_stored(np.array([[-1.0, 0.0, 1.0]], np.float32)).tolist() == [[0, 32768, 65535]]


def test_two_knees_of_a_sixteen_bit_film(tmp_path: Path) -> None:
    scene = draw_scene(seed=5, number=1, kind="both", longest=300)
    film = scene.image.astype(np.uint16) * 200
    folder, out = tmp_path / "films", tmp_path / "out"
    folder.mkdir()
    cv2.imwrite(str(folder / "7.png"), film)
    cv2.imwrite(str(folder / "8.png"), film[:, ::-1])
    (folder / "9.png").write_bytes(b"no picture")
    rows = table(("7.png", "7", "", 2), ("8.png", "8", "", None), ("9.png", "9", "", 1))
    found = crop_images(folder, out, rows, size_mm=140)
    assert found.table["image"].tolist() == ["7_R.png", "7_L.png", "8_R.png", "8_L.png"]
    assert found.table["side"].tolist() == ["R", "L", "R", "L"]
    assert found.table["grade"].isna().all(), "no grade of one image for two knees"
    assert set(found.table["side_from"]) == {"anatomy"}
    assert set(found.table["split"]) == {"train"}
    for row in found.table.itertuples():
        left, top, width, height = map(int, row.box.split())
        source = cv2.imread(str(folder / row.source), cv2.IMREAD_UNCHANGED)
        crop = cv2.imread(str(out / row.image), cv2.IMREAD_UNCHANGED)
        assert crop.dtype == np.uint16
        assert np.array_equal(crop, source[top : top + height, left : left + width])
    # The flipped film has the flipped boxes: its left crop is the other one's right crop.
    first, second = (found.table["box"].iat[row].split() for row in (0, 3))
    assert int(first[0]) + int(first[2]) + int(second[0]) == pytest.approx(film.shape[1], abs=6)
    assert found.rejected == [("9.png", found.rejected[0][1])]
    assert "is not a PNG" in found.rejected[0][1]
    assert [page.name for page in found.pages] == ["page_001.png"]
    assert any("1 image of two knees had one grade" in note for note in found.notes)


def test_one_knee_keeps_its_grade_and_the_side_of_the_file(tmp_path: Path) -> None:
    scene = draw_scene(seed=5, number=2, kind="single", longest=300)
    cv2.imwrite(str(tmp_path / "7_x.png"), scene.image)
    other = "R" if scene.knees[0].side == "L" else "L"
    found = crop_images(tmp_path, tmp_path / "out", table(("7_x.png", "7", other, 3)), size_mm=140)
    (row,) = found.table.to_dict("records")
    assert (row["side"], row["side_from"], row["grade"]) == (other, "file", 3)
