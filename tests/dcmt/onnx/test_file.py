"""An exported file, opened: grades and maps in any number of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcmt.cli import main
from dcmt.onnx.file import ExportedNetwork
from knee.engine.run import RunFolder
from knee.errors import UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_maps_come_with_the_same_grades_whatever_the_number_of_images(trained_run: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "knee.onnx"
    assert main(["export", str(trained_run.path), "--out", str(path)]) == 0
    network = ExportedNetwork(path)
    assert len(network.sha256) == 64 and network.card.threshold == 0.4
    size = network.card.image_size
    images = np.random.default_rng(0).integers(0, 256, (33, size, size)).astype(np.uint8)
    probabilities, x = network.attend(images)
    assert x.shape == images.shape and x.min() >= 0 and x.max() == pytest.approx(1)
    np.testing.assert_allclose(probabilities, network.grade(images)[0], atol=1e-6)
    np.testing.assert_allclose(network.attend(images[32:])[1], x[32:], atol=1e-3)


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for name in ("empty.onnx", "none.onnx"):
        with pytest.raises(UserError, match="is not a file of dcmt export"):
            ExportedNetwork(tmp_path / name)
