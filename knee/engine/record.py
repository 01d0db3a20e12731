"""The provenance of a run: hashes of data and split, grades, and versions of packages and code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from knee.data.prepare import KneeData
from knee.engine.run import RunFolder, file_hash
from knee.grades import grade_set_yaml
from knee.io.files import moved_into_place

_PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "albumentations", "open_clip_torch", "numpy", "pandas")


def record_data(run: RunFolder, data: KneeData) -> None:
    """Store the grade set, and in ``local/`` the split and the key from case names to files."""
    with moved_into_place(run.grade_set) as scratch:
        scratch.write_text(grade_set_yaml(data.grade_set), encoding="utf-8")
    if data.cache.template is not None:
        np.save(run.template_path, data.cache.template)
    shutil.copyfile(data.split.path, run.local / "split.csv")
    key = data.manifest.table[["image", "patient"]].copy()
    key.insert(0, "case", data.cases(data.manifest.table.index.to_numpy()))
    key.to_csv(run.local / "cases.csv", index=False)
    for path in run.local.iterdir():
        path.chmod(0o600)


def run_state(data: KneeData, *, best_metric: str) -> dict[str, Any]:
    """The provenance that is stored in every checkpoint."""
    return {
        "versions": versions(),
        "manifest_sha256": file_hash(data.manifest.path),
        "split_sha256": file_hash(data.split.path),
        "pixels_sha256": data.cache.pixels_sha256,
        "labeled_images": len(data.labeled),
        "unlabeled_images": len(data.unlabeled),
        "grade_set": data.grade_set.name,
        "best_metric": best_metric,
    }


def versions() -> dict[str, str]:
    """Versions of Python, of packages that affect results, and of the code (commit, or a hash of the sources)."""
    found = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "dcmt": code_version(), **found}


def code_version() -> str:
    """The commit if the sources are a git checkout (``+`` marks changes), else a hash of the files."""
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
        for package in ("knee", "dcmt", "clip_koa", "segmentation", "image_text"):
            for path in sorted((root / package).rglob("*.py")):
                digest.update(path.read_bytes())
        return f"sources-{digest.hexdigest()[:12]}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
