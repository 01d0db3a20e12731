"""Equal weights and operators are merged, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dcmt.onnx.simplify import merge_repeated

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def value(name: str) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2])


def model(*nodes: tuple[str, list[str], str], **weights: float) -> Any:
    tensors = [onnx.numpy_helper.from_array(np.full((2, 2), one, np.float32), name) for name, one in weights.items()]
    made = [onnx.helper.make_node(kind, inputs, [output], f"of {output}") for kind, inputs, output in nodes]
    graph = onnx.helper.make_graph(made, "g", [value("x")], [value("y"), value("z")], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def run(found: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    values: list[Any] = session.run(None, {"x": np.arange(4, dtype=np.float32).reshape(2, 2)})
    return values


def test_two_equal_branches_become_one() -> None:
    found = model(
        ("MatMul", ["x", "a"], "p"), ("Relu", ["p"], "q"), ("Add", ["q", "c"], "y"),
        ("Identity", ["b"], "d"), ("MatMul", ["x", "d"], "r"), ("Relu", ["r"], "s"), ("Sub", ["s", "c"], "z"),
        a=0.5, b=0.5, c=2.0,
    )  # fmt: skip
    before = run(found)
    merge_repeated(found)
    assert [node.op_type for node in found.graph.node] == ["MatMul", "Relu", "Add", "Sub"]
    assert [tensor.name for tensor in found.graph.initializer] == ["a", "c"]
    np.testing.assert_array_equal(run(found), before)


def test_what_differs_stays_and_outputs_keep_their_names() -> None:
    found = model(("MatMul", ["x", "a"], "y"), ("MatMul", ["x", "a"], "z"), a=0.5)
    before = run(found)
    merge_repeated(found)
    assert [node.output[0] for node in found.graph.node] == ["y", "z"]
    np.testing.assert_array_equal(run(found), before)
    other = model(("MatMul", ["x", "a"], "y"), ("MatMul", ["a", "x"], "z"), a=0.5)
    merge_repeated(other)
    assert len(other.graph.node) == 2
