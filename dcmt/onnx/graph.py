"""What the graph of an ONNX file contains, read before ONNX Runtime is given the file.

A file may come from a stranger. It must be whole by itself, consist of ONNX's own operators, and need bounded memory. The file
is a protocol buffer; the few fields that matter are read here, so that grading needs no package but ONNX Runtime.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from knee.errors import UserError
from knee.io.plain import shown

_MOST_NODES = 100_000
_MOST_NUMBERS = 1 << 28
"""In one tensor: 1 GiB of float32."""
_ENDLESS = ("Loop", "Scan")
_MADE_BY_SHAPE = ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize")
"""Operators whose result may be far larger than their inputs: its shape follows from integers."""
_DOMAINS = ("", "ai.onnx")
_EXTERNAL, _INT64 = 1, 7
Part = memoryview


class _Message(NamedTuple):
    """The fields of a message of a protocol buffer, by number; each may occur several times."""

    numbers: dict[int, list[int]]
    parts: dict[int, list[Part]]
    """Texts, messages and packed numbers."""

    def text(self, field: int) -> str:
        return bytes(self.parts[field][-1]).decode("utf-8", "replace") if self.parts[field] else ""

    def integers(self, field: int) -> list[int]:
        """A repeated integer, packed or not."""
        found = list(self.numbers[field])
        for part in self.parts[field]:
            place = 0
            while place < len(part):
                value, place = _varint(part, place)
                found.append(value)
        return found

    def only(self, field: int) -> list[Part]:
        """A message that occurs at most once: several would be one for the runtime. Raises ValueError."""
        if len(self.parts[field]) > 1:
            raise ValueError("a part occurs twice")
        return self.parts[field]


def check_graph(content: bytes) -> None:
    """Raises UserError if the content is not an ONNX model, or one that should not be run."""
    try:
        model = _message(memoryview(content))
        graphs = model.only(7)
        if not graphs:
            raise ValueError("no graph")
        if model.parts[25]:
            name = _message(model.parts[25][0]).text(1)
            raise UserError(f"its graph has functions of its own ({shown(name)}), which are not run")
        _check_graphs(graphs[0])
    except (ValueError, struct.error) as error:
        raise UserError("it is not a model that ONNX Runtime can run (its graph cannot be read)") from error


def _check_graphs(graph: Part) -> None:
    """A graph and those of its conditions, however deep."""
    waiting, count = [graph], 0
    known: dict[str, list[int]] = {}
    while waiting:
        fields = _message(waiting.pop())
        for tensor in fields.parts[5]:
            known |= _check_tensor(tensor)
        sparse = list(fields.parts[15])
        for node in map(_message, fields.parts[1]):
            count += 1
            if count > _MOST_NODES:
                raise UserError(f"its graph has more than {_MOST_NODES:,} operators")
            for attribute in map(_message, node.parts[5]):
                waiting += [*attribute.only(6), *attribute.parts[11]]
                sparse += [*attribute.only(22), *attribute.parts[23]]
                for tensor in (*attribute.only(5), *attribute.parts[10]):
                    values = _check_tensor(tensor)
                    known |= {node.text(2): one for one in values.values()}  # of a Constant
            _check_node(node, known)
        for one in map(_message, sparse):
            _check_size("sparse", one.integers(3))
            for tensor in (*one.only(1), *one.only(2)):
                _check_tensor(tensor)


def _check_node(node: _Message, known: dict[str, list[int]]) -> None:
    kind, domain = node.text(4), node.text(7)
    if domain not in _DOMAINS:
        raise UserError(f"its operator {shown(kind)} is of {shown(domain)}, not one of ONNX; it is not run")
    if kind in _ENDLESS:
        raise UserError(f"its graph has a {kind}, which may never end; networks of dcmt export have none")
    if kind in _MADE_BY_SHAPE:
        for name in (bytes(part).decode("utf-8", "replace") for part in node.parts[1]):
            _check_size(node.text(2), [max(abs(size), 1) for size in known.get(name, ())])


def _check_tensor(tensor: Part) -> dict[str, list[int]]:
    """The values of a short integer tensor by its name; empty for others. Raises UserError for one that is not read."""
    fields = _message(tensor)
    name = fields.text(8)
    if fields.parts[13] or _EXTERNAL in fields.numbers[14]:
        entries = [_message(part) for part in fields.parts[13]]
        place = next((one.text(2) for one in entries if one.text(1) == "location"), "unnamed")
        raise UserError(
            f"its weights {shown(name)} are in another file ({shown(place)}), which is not read; dcmt export writes one whole "
            "file"
        )
    dims = fields.integers(1)
    _check_size(name, dims)
    if fields.numbers[2] != [_INT64] or math.prod(dims) > 64:
        return {}
    raw = b"".join(fields.parts[9])
    values = [value[0] for value in struct.iter_unpack("<q", raw)] if raw else fields.integers(7)
    return {name: values}


def _check_size(name: str, dims: Sequence[int]) -> None:
    if any(size < 0 for size in dims) or math.prod(dims) > _MOST_NUMBERS:
        raise UserError(
            f"its tensor {shown(name)} has the shape {shown(list(dims))}, more than {_MOST_NUMBERS:,} numbers"
        )


def _message(part: Part) -> _Message:
    """Raises ValueError if it is not a message."""
    found = _Message(defaultdict(list), defaultdict(list))
    for field, value in _fields(part):
        if isinstance(value, int):
            found.numbers[field].append(value)
        else:
            found.parts[field].append(value)
    return found


def _fields(part: Part) -> Iterator[tuple[int, int | Part]]:
    place = 0
    while place < len(part):
        key, place = _varint(part, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(part, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(part, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if not 0 <= size <= len(part) - place:
            raise ValueError("cut off")
        yield key >> 3, part[place : place + size]
        place += size


def _varint(part: Part, place: int) -> tuple[int, int]:
    """A number in two's complement of 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(part):
            break
        byte = part[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            value &= (1 << 64) - 1
            return value - (1 << 64) if value >> 63 else value, place
    raise ValueError("cut off")
