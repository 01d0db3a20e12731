"""YAML without silent losses: of a key that stands twice YAML keeps the last, and says nothing."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


def read_unique(text: str) -> tuple[Any, list[str]]:
    """The content of a YAML text, read safely, and a sentence with line numbers for each key given twice.

    Raises yaml.YAMLError, RecursionError or ValueError for what is no YAML.

    >>> read_unique("a: 1\\nb: 2\\na: 3\\n")
    ({'a': 3, 'b': 2}, ["line 3: 'a' stands on line 1 already; keep one of the two"])
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.duplicates
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """A safe loader that remembers keys given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:int":
                key = self.construct_object(key_node)
            if isinstance(key, Hashable) and key in seen:
                self.duplicates.append(f"line {line}: '{key}' stands on line {seen[key]} already; keep one of the two")
            elif isinstance(key, Hashable):
                seen[key] = line
        return super().construct_mapping(node, deep=deep)
