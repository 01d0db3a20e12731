"""The layout itself: a test file for every module, small folders, files and functions, documented functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("knee", "dcmt", "clip_koa", "segmentation", "image_text")
CODE = (*PACKAGES, "experiments", "benchmarks", "tests")
MOST_MODULES, MOST_LINES, MOST_OF_A_FUNCTION = 14, 350, 50
UNTESTED: frozenset[str] = frozenset()
"""Modules without a test file of their own."""


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Name with its classes, definition, and whether it is public: it and all its classes, and not within a function."""
    waiting: list[tuple[str, ast.AST, bool]] = [("", ast.parse(path.read_text(encoding="utf-8")), True)]
    while waiting:
        prefix, parent, public = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                waiting.append((prefix, node, public))
                continue
            name, shown = f"{prefix}{node.name}", public and not node.name.startswith("_")
            if isinstance(node, ast.FunctionDef):
                yield name, node, shown
            waiting.append((f"{name}.", node, shown and isinstance(node, ast.ClassDef)))


def lines_of(node: ast.FunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_every_module_has_a_test_file_of_its_name() -> None:
    modules = [path.relative_to(ROOT) for path in python_files(*PACKAGES) if path.name != "__init__.py"]
    assert len(modules) > 100
    missing = {str(path) for path in modules if not (ROOT / "tests" / path.parent / f"test_{path.name}").is_file()}
    assert missing == UNTESTED, "write tests/PATH/test_MODULE.py"


def test_test_files_have_tests() -> None:
    for path in python_files("tests"):
        if path.name.startswith("test_"):
            assert any(node.name.startswith("test") for _, node, _ in functions(path)), path


def test_folders_hold_at_most_14_modules() -> None:
    folders = {path.parent for path in python_files(*PACKAGES)}
    entries = ("__init__.py", "__main__.py")
    counts = {folder: sum(path.name not in entries for path in folder.glob("*.py")) for folder in folders}
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("folder", CODE)
def test_files_have_at_most_350_lines(folder: str) -> None:
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(folder)}
    assert counts
    assert {str(path.relative_to(ROOT)): count for path, count in counts.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("folder", CODE)
def test_functions_have_at_most_50_lines(folder: str) -> None:
    counts = {
        f"{path.relative_to(ROOT)}: {name}": lines_of(node)
        for path in python_files(folder)
        for name, node, _ in functions(path)
    }
    assert {name: count for name, count in counts.items() if count > MOST_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("folder", PACKAGES)
def test_public_functions_have_docstrings(folder: str) -> None:
    public = [
        (f"{path.relative_to(ROOT)}: {name}", node)
        for path in python_files(folder)
        for name, node, shown in functions(path)
        if shown
    ]
    assert public
    assert [name for name, node in public if not ast.get_docstring(node)] == []


def test_what_is_public_long_and_documented(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "class A:\n"
        "    def seen(self):\n"
        '        """Two\n        lines."""\n'
        "        def within():\n            pass\n"
        "class _B:\n    def hidden(self): pass\n"
        "if True:\n    def found(): pass\n"
        "def _private(): pass\n"
    )
    found = {name: (lines_of(node), public) for name, node, public in functions(path)}
    assert found == {
        "A.seen": (3, True),
        "A.seen.within": (2, False),
        "_B.hidden": (1, False),
        "found": (1, True),
        "_private": (1, False),
    }
