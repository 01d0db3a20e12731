"""Files from strangers: what would reach beyond the file, never end or fill the memory is refused before it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcmt.cli import main
from dcmt.onnx.graph import check_graph
from knee.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def value(name: str, shape: list[int] | None = None) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def content(
    nodes: list[Any],
    tensors: list[Any] | None = None,
    functions: list[Any] | None = None,
    shape: list[int] | None = None,
) -> bytes:
    graph = onnx.helper.make_graph(nodes, "g", [value("image", [1, 4])], [value("y", shape)], tensors or [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], functions=functions or [])
    found: bytes = model.SerializeToString()
    return found


def tensor(name: str, values: Any) -> Any:
    return onnx.numpy_helper.from_array(np.asarray(values), name)


def node(kind: str, *inputs: str, output: str = "y", **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


def elsewhere(place: str) -> bytes:
    weights = tensor("w", np.ones(4, np.float32))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    return content([node("Add", "image", "w")], [weights])


def within_a_condition() -> bytes:
    """The same, hidden in the branch of a condition."""
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    branch = onnx.helper.make_graph([node("Constant", output="z", value=weights)], "b", [], [value("z")])
    condition = tensor("c", True)
    return content([node("If", "c", then_branch=branch, else_branch=branch)], [condition])


def declared_huge() -> bytes:
    return content([node("Add", "image", "w")], [onnx.TensorProto(name="w", data_type=1, dims=[1 << 40])])


def made_huge() -> bytes:
    """Sixteen bytes that become a tensor of four terabytes when the graph is run."""
    return content([node("ConstantOfShape", "s")], [tensor("s", np.array([1 << 20, 1 << 20]))])


def own_function() -> bytes:
    function = onnx.helper.make_function("mine", "F", ["a"], ["b"], [node("Relu", "a", output="b")], [])
    return content([node("F", "image", domain="mine")], functions=[function])


def endless() -> bytes:
    body = onnx.helper.make_graph([node("Identity", "c", output="d")], "b", [value("i"), value("c")], [value("d")])
    return content([node("Loop", "", "image", body=body)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"no graph \xff", "its graph cannot be read"),
        (lambda: elsewhere("../secret.bin"), r"weights 'w' are in another file \('../secret.bin'\)"),
        (lambda: elsewhere("/etc/passwd"), "in another file"),
        (within_a_condition, "in another file"),
        (declared_huge, "tensor 'w' has the shape"),
        (made_huge, "'y' has the shape"),
        (own_function, "functions of its own"),
        (lambda: content([node("Steal", "image", domain="evil")]), "operator 'Steal' is of 'evil'"),
        (endless, "a Loop, which may never end"),
    ],
)
def test_what_is_not_run(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_graph(make())


def test_a_plain_graph_passes() -> None:
    check_graph(content([node("Add", "image", "w")], [tensor("w", np.ones(4, np.float32))]))


def test_predict_refuses_before_the_file_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmt.onnx.file.open_session", lambda _: pytest.fail("the runtime was given the file"))
    path = tmp_path / "stranger.onnx"
    path.write_bytes(made_huge())
    assert main(["predict", str(path), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"dcmt: {path}: its tensor 'y' has the shape")
