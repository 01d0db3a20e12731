"""dcmt export --int8: a smaller file of the same outputs, whose cost is measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dcmt.cli import main
from dcmt.onnx.file import ExportedNetwork
from knee.engine.run import RunFolder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_the_cost_is_measured_and_distances_are_kept(trained_run: RunFolder, tmp_path: Path, said: list[str]) -> None:
    run = str(trained_run.path)
    for name, more in (("float", []), ("int8", ["--int8", "val"])):
        assert main(["export", run, "--out", str(tmp_path / f"{name}.onnx"), *more]) == 0
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.6 * sizes[0], "the matrix of the distances is kept"
    (cost,) = (line for line in said if "graded val images" in line)
    found = re.search(r"kappa (-?[0-9.]+|nan) in float32, (-?[0-9.]+|nan) in int8 .* probability ([0-9.]+)$", cost)
    assert found, cost
    networks = [ExportedNetwork(tmp_path / f"{name}.onnx") for name in ("float", "int8")]
    assert [network.card.int8 for network in networks] == [False, True]
    images = np.random.default_rng(0).integers(1, 256, (4, 48, 48), dtype=np.uint8)
    (exact, distances), (quantized, others) = (network.grade(images) for network in networks)
    assert 0 < np.abs(exact - quantized).max() < 0.2
    np.testing.assert_allclose(others, distances, rtol=0.2)
    model = onnx.load(str(tmp_path / "int8.onnx"))
    kinds = {node.op_type for node in model.graph.node}
    assert {"ConvInteger", "MatMulInteger"} & kinds
    assert "QLinearConv" not in kinds


def test_training_images_are_not_measured(trained_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(trained_run.path), "--out", str(tmp_path / "x.onnx"), "--int8", "train"])
    assert not (tmp_path / "x.onnx").exists()


def test_a_segmenter_has_no_grades_to_cost(
    trained_segmenter: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    out = tmp_path / "unet.onnx"
    assert main(["export", str(trained_segmenter.path), "--out", str(out), "--int8", "val"]) == 2
    assert "give --int8 alone for a segmenter" in capsys.readouterr().err
    assert main(["export", str(trained_segmenter.path), "--out", str(out), "--int8"]) == 0
    assert any(line.startswith("int8: largest difference") for line in said)
