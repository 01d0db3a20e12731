"""What numbers depend on besides data and config: versions of Python, of packages, and of this code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "albumentations", "open_clip_torch", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Versions of Python, the packages that numbers depend on, and the code (commit, or a hash of the sources)."""
    found = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "dcmt": code_version(), **found}


def code_version() -> str:
    """The commit of the sources where they are a git checkout (``+`` marks changes), else a hash of the files."""
    root = Path(__file__).parents[2]
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        digest = hashlib.sha256()
        for package in ("knee", "dcmt", "clip_koa", "segmentation"):
            for path in sorted((root / package).rglob("*.py")):
                digest.update(path.read_bytes())
        return f"sources-{digest.hexdigest()[:12]}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
