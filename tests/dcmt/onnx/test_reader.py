"""Images prepared without torch: names, sides and reasons."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dcmt.onnx.reader import Preparation, PreparedImages, unlike_reason
from knee.images.original import read_original


def test_a_side_is_mirrored_and_names_with_line_breaks_are_refused(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    paths = [tmp_path / name for name in ("a_L.png", "a_R.png", "a\nb.png", "none.png")]
    for path in paths[:3]:
        cv2.imwrite(str(path), picture)
    reader = PreparedImages(Preparation(32, (0.5, 99.5), "L", None))
    chunk = reader.read(paths)
    assert [file.path for file in chunk.files] == paths[:2]
    assert chunk.sides == ["L", "R"]
    assert len(chunk.images) == 2
    assert np.array_equal(chunk.images[0], chunk.images[1][:, ::-1])
    assert len(chunk.rejected) == 2
    assert chunk.rejected[0].reason.startswith("the name contains a line break")


def test_originals_are_kept_up_to_a_size_and_are_those_read_from_the_file(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "b.png"), picture[:39])
    reader = PreparedImages(Preparation(32, (0.5, 99.5), "L", None), most_px=39 * 30)
    for _ in range(2):
        chunk = reader.read([tmp_path / "none.png", tmp_path / "a.png", tmp_path / "b.png"])
        large, small = (file.original for file in chunk.files)
        assert large is None and small is not None
        again = read_original(chunk.sources[-1])
        assert np.array_equal(small.pixels, again.pixels) and (small.window, small.path) == (again.window, again.path)


def test_what_was_kept_is_not_read_again_and_what_was_not_is(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        cv2.imwrite(str(path), picture)
    how = Preparation(32, (0.5, 99.5), "L", None)
    first = PreparedImages(how, kept_px=2 * picture.size)
    images = first.read(paths[:1]).images
    first.read(paths[1:])
    for path in paths:
        path.unlink()
    later = PreparedImages(how, most_px=picture.size, before=first)
    again = later.read(paths)
    assert [file.path for file in again.files] == paths[:2] and len(again.rejected) == 1, (
        "of three images two were kept"
    )
    assert np.array_equal(again.images[0], images[0]) and all(file.original for file in again.files)
    assert later.read(paths).files == [], "each is kept for one reader"


def test_why_an_image_is_unlike() -> None:
    assert unlike_reason("DX", 2.0, modalities=["CR"], farthest=None) == ""
    assert unlike_reason("", 2.0, modalities=["CR"], farthest=1.0) == "it is unlike the training images"
    assert unlike_reason("", float("nan"), modalities=[], farthest=1.0) == "it is unlike the training images"
