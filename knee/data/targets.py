"""Soft targets for training images, which earlier networks predicted: a file of their own, with its origin beside it.

Only training images may have targets, so that nothing is learned about validation and test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee.data.manifest import Manifest
from knee.data.splits import Split
from knee.errors import Faults, UserError
from knee.io.files import write_json, write_text
from knee.io.tables import read_table, shortened

Rows = NDArray[np.int64]
_HINT = "write the file again by dcmt self-train, with this manifest and split"


@dataclass(frozen=True)
class SoftTargets:
    """Probabilities of the grades for some training images."""

    rows: Rows
    """(U,) rows of the manifest."""
    probabilities: NDArray[np.float32]
    """(U, K), rows sum to 1."""


def write_targets(path: Path, images: Sequence[str], probabilities: NDArray[Any], origin: Mapping[str, Any]) -> None:
    """Write targets (U, K) of the named images, and what they come from as JSON beside them. Names images: keep it private."""
    titles = ",".join(["image", *(f"p_{grade}" for grade in range(probabilities.shape[1]))])
    quoted = ('"' + image.replace('"', '""') + '"' for image in images)
    lines = (",".join([image, *(f"{p:.6f}" for p in row)]) for image, row in zip(quoted, probabilities, strict=True))
    write_json(origin_path(path), dict(origin))
    write_text(path, "\n".join([titles, *lines, ""]))
    for file in (path, origin_path(path)):
        file.chmod(0o600)


def origin_path(path: Path) -> Path:
    """The file beside targets that tells what they come from."""
    return path.with_suffix(".json")


def read_targets(path: Path, manifest: Manifest, split: Split, *, grades: int) -> SoftTargets:
    """The targets in ``path`` for images of the manifest.

    Raises:
        UserError, Faults: not such a file; an image twice, unknown, or not in the training split; numbers that are not
            probabilities of ``grades`` grades.
    """
    columns = tuple(f"p_{grade}" for grade in range(grades))
    table, faults = read_table(path, ("image", *columns))
    if f"p_{grades}" in table:
        raise UserError(f"{path}: has targets for more than {grades} grades; {_HINT}")
    known = {image: row for row, image in enumerate(manifest.table["image"])}
    parts = split.frame["split"].to_numpy()
    values, rows = np.zeros((len(table), grades)), np.zeros(len(table), np.int64)
    seen: set[str] = set()
    for number, (image, line, *fields) in enumerate(
        table[["image", "line", *columns]].itertuples(index=False, name=None)
    ):
        reason = _unfit(image, known, parts, seen)
        numbers = _probabilities(fields)
        if reason or numbers is None:
            faults.append(f"{path.name} line {line}: {reason or f'{fields} are not probabilities of the grades'}")
            continue
        seen.add(image)
        rows[number], values[number] = known[image], numbers
    if faults:
        raise Faults(shortened(faults), summary=f"{path}: not targets for these training images; {_HINT}:")
    return SoftTargets(rows, values.astype(np.float32))


def _unfit(image: str, known: Mapping[str, int], parts: NDArray[Any], seen: set[str]) -> str:
    """Why an image cannot have targets; empty if it can."""
    if image in seen:
        return f"'{image}' occurs twice"
    if image not in known:
        return f"'{image}' is not in the manifest"
    if (part := parts[known[image]]) != "train":
        return f"'{image}' is in {part}: only training images may have targets"
    return ""


def _probabilities(fields: Sequence[str]) -> NDArray[np.float64] | None:
    """The numbers in the fields; None unless they are at least 0 and sum to 1."""
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        return None
    # NaN fails both comparisons.
    return values if (values >= 0).all() and abs(values.sum() - 1) < 1e-3 else None
