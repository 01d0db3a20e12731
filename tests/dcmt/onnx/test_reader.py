"""Images prepared without torch: names, sides and reasons."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dcmt.onnx.reader import Preparation, PreparedImages, unlike_reason


def test_a_side_is_mirrored_and_names_with_line_breaks_are_refused(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    paths = [tmp_path / name for name in ("a_L.png", "a_R.png", "a\nb.png", "none.png")]
    for path in paths[:3]:
        cv2.imwrite(str(path), picture)
    reader = PreparedImages(Preparation(32, (0.5, 99.5), "L", None))
    images, read = reader.read(paths)
    assert read == paths[:2]
    assert reader.sides == ["L", "R"]
    assert np.array_equal(images[0], images[1][:, ::-1])
    assert len(reader.rejected) == 2
    assert reader.rejected[0][1].startswith("the name contains a line break")


def test_why_an_image_is_unlike() -> None:
    assert unlike_reason("DX", 2.0, modalities=["CR"], farthest=None) == ""
    assert unlike_reason("", 2.0, modalities=["CR"], farthest=1.0) == "it is unlike the training images"
    assert unlike_reason("", float("nan"), modalities=[], farthest=1.0) == "it is unlike the training images"
