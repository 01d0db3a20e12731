"""Which code made a number: a hash of the modules that training imports, and the commit."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("knee", "dcmt", "clip_koa", "segmentation")
WITHOUT_NUMBERS = (
    "knee.review", "knee.evaluation.figures", "knee.evaluation.overlays", "knee.evaluation.pictures", "knee.engine.tracking",
    "knee.errors", "knee.engine.options",  # speak; what the options say is in the hash of the config
    "knee.images.dicom", "knee.images.nifti",  # read formats that no experiment here uses
)  # fmt: skip
"""Modules that no number depends on: changing a figure must not cost hours of training."""


@cache
def code_hash(roots: Sequence[str], folder: Path = ROOT) -> str:
    """A hash (16 hex digits) of the modules ``roots`` of our packages and of all that they import, directly or not.

    Imports inside functions count. Comments, docstrings and layout do not.
    """
    digest = hashlib.sha256()
    for name, path in sorted(imported_modules(roots, folder).items()):
        digest.update(f"{name}\n{_bare(path)}\n".encode())
    return digest.hexdigest()[:16]


def imported_modules(roots: Sequence[str], folder: Path = ROOT) -> dict[str, Path]:
    """The files of ``roots`` and of what they import of our packages, by module name."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _file(name, folder)
        if name in found or path is None or any(f"{name}.".startswith(f"{left}.") for left in WITHOUT_NUMBERS):
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _file(name: str, folder: Path) -> Path | None:
    if name.partition(".")[0] not in PACKAGES:
        return None
    path = folder.joinpath(*name.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


def _bare(path: Path) -> str:
    """The code of a file without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def commit(folder: Path = ROOT) -> tuple[str, bool]:
    """The commit checked out (12 hex digits, "unknown" outside git), and whether code or configs differ from it."""
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD").strip()
        changes = _git(folder, "status", "--porcelain", "--", *PACKAGES, "configs", "experiments", "train.py")
    except (OSError, subprocess.SubprocessError):
        return "unknown", False
    return head, bool(changes.strip())


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout
