"""What the graph of an ONNX file contains, read before ONNX Runtime is given the file.

A file may come from a stranger: it must be whole by itself, consist of ONNX's own operators, and need a bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dcmt.onnx.runtime import require
from knee.errors import UserError
from knee.io.plain import shown

_MOST_NODES = 100_000
_MOST_NUMBERS = 1 << 28
"""In one tensor for one image: 1 GiB of float32."""
_SMALL = 1 << 16
_ENDLESS = ("Loop", "Scan")
_DOMAINS = ("", "ai.onnx")


def check_graph(content: bytes) -> None:
    """Raises UserError if the content is not an ONNX model, or one that should not be run."""
    require("onnx")
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of the parser, of several kinds
        raise UserError("it is not an ONNX file") from error
    if model.functions:
        raise UserError(f"its graph has functions of its own ({shown(model.functions[0].name)}), which are not run")
    nodes = 0
    for graph in _graphs(model.graph):
        nodes += len(graph.node)
        if nodes > _MOST_NODES:
            raise UserError(f"its graph has more than {_MOST_NODES:,} operators")
        for node in graph.node:
            _check_node(node)
        for tensor in _tensors(graph):
            _check_tensor(tensor)
    _check_values(model)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those of its conditions, however deep."""
    waiting = [graph]
    while waiting:
        found = waiting.pop()
        yield found
        for node in found.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            sparse += attribute.sparse_tensors
    for one in sparse:
        yield from (one.values, one.indices)
        _check_size(one.values.name, one.dims)


def _check_node(node: Any) -> None:
    if node.domain not in _DOMAINS:
        raise UserError(
            f"its operator {shown(node.op_type)} is of {shown(node.domain)}, not one of ONNX; it is not run"
        )
    if node.op_type in _ENDLESS:
        raise UserError(f"its graph has a {node.op_type}, which may never end; networks of dcmt export have none")


def _check_tensor(tensor: Any) -> None:
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        raise UserError(
            f"its weights {shown(tensor.name)} are in another file ({shown(places[0]) if places else 'unnamed'}), which is not "
            "read; dcmt export writes one whole file"
        )
    _check_size(tensor.name, tensor.dims)


def _check_size(name: str, dims: Any) -> None:
    if any(size < 0 for size in dims) or math.prod(dims) > _MOST_NUMBERS:
        raise UserError(
            f"its tensor {shown(name)} has the shape {shown(list(dims))}, more than {_MOST_NUMBERS:,} numbers"
        )


def _check_values(model: Any) -> None:
    """Refuse results that would be huge, as far as their shapes follow from the graph; changes the model."""
    import onnx

    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if len(tensor.raw_data) > _SMALL:
                tensor.ClearField("raw_data")  # shapes follow from small tensors alone
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise UserError(f"the shapes of its graph do not fit each other ({str(error)[:200]})") from error
    for graph in _graphs(found.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_size(value.name, [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim])
