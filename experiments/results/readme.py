"""README's tables: copies of files in docs/results, between marks, made by the command that writes those files."""

from __future__ import annotations

import re
from pathlib import Path

from knee.io.files import write_text

_BLOCK = re.compile(r"(<!-- from (docs/results/\w+\.md) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def include_tables(readme: Path) -> None:
    """Replace what stands between ``<!-- from docs/results/NAME.md -->`` and ``<!-- end -->`` by that file without its title.

    A block whose file is not there yet stays as it is.
    """
    text = readme.read_text(encoding="utf-8")
    write_text(readme, included(text, readme.parent), force=True)


def included(text: str, root: Path) -> str:
    """``text`` with its blocks as the files below ``root`` have them."""

    def block(found: re.Match[str]) -> str:
        start, name, shown, end = found.groups()
        path = root / name
        if path.exists():
            shown = path.read_text(encoding="utf-8").partition("\n")[2].strip("\n") + "\n"
        return start + shown + end

    return _BLOCK.sub(block, text)
