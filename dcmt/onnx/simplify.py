"""Compute once what a graph computes twice: features serve grades and the distance from the training images alike."""

from __future__ import annotations

from typing import Any


def merge_repeated(model: Any) -> None:
    """Merge equal weights and equal operators on equal inputs, in place; outputs stay the same to the bit.

    A graph with conditions or loops is left as it is.
    """
    graph = model.graph
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    kept_names = {output.name for output in graph.output}
    same: dict[str, str] = {}
    seen: dict[bytes, list[str]] = {}
    weights = []
    for tensor in graph.initializer:
        name = tensor.name
        tensor.name = ""
        key, tensor.name = b"weights" + tensor.SerializeToString(deterministic=True), name
        if key in seen:
            same[name] = seen[key][0]
        else:
            seen[key] = [name]
            weights.append(tensor)
    nodes = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        name, outputs = node.name, list(node.output)
        if node.op_type == "Identity" and outputs[0] not in kept_names:
            same[outputs[0]] = node.input[0]
            continue
        node.name, node.output[:] = "", []
        key = b"node" + node.SerializeToString(deterministic=True)
        node.name, node.output[:] = name, outputs
        if key in seen and len(seen[key]) == len(outputs) and not kept_names.intersection(outputs):
            same |= dict(zip(outputs, seen[key], strict=True))
        else:
            seen.setdefault(key, outputs)
            nodes.append(node)
    for field, kept in ((graph.initializer, weights), (graph.node, nodes)):
        copies = [type(one).FromString(one.SerializeToString()) for one in kept]
        del field[:]
        field.extend(copies)
