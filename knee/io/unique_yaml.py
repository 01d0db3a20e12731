"""Read YAML safely: duplicate keys are reported, and nested anchors (YAML bombs) are refused."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

_MOST_CHARACTERS = 1 << 18
_MOST_ALIASES = 100


def read_unique(text: str) -> tuple[Any, list[str]]:
    """The content of a YAML text, read safely, and an error message with line numbers for each duplicate key.

    Raises yaml.YAMLError, RecursionError or ValueError for invalid YAML, for more than 256 kB of text, and for anchors that
    could expand exponentially: more than 100 aliases, or an alias to a part that itself contains an alias.

    >>> read_unique("a: 1\\nb: 2\\na: 3\\n")
    ({'a': 3, 'b': 2}, ["line 3: 'a' is on line 1 already; keep one of the two"])
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters, more than {_MOST_CHARACTERS:,}")
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.duplicates
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """A safe loader that records duplicate keys and refuses nested anchors."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []
        self._aliases = 0
        self._with_alias: set[str | None] = set()
        """Anchors of parts that contain an alias."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if event.anchor in self._with_alias or self._aliases > _MOST_ALIASES:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise yaml.YAMLError(f"line {line}: nested or too many anchors (*{event.anchor}); write the values out")
        before, anchor = self._aliases, getattr(event, "anchor", None)
        self._with_alias.add(anchor)  # while the part is open, an alias to it would be recursive
        node = super().compose_node(parent, index)
        if self._aliases == before:
            self._with_alias.discard(anchor)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:int":
                key = self.construct_object(key_node)
            if isinstance(key, Hashable) and key in seen:
                self.duplicates.append(f"line {line}: '{key}' is on line {seen[key]} already; keep one of the two")
            elif isinstance(key, Hashable):
                seen[key] = line
        return super().construct_mapping(node, deep=deep)
