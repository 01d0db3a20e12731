"""The files behind a cache: unreadable ones are all named; the cache's name depends on content and options alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from knee.data.sources import Items, cache_key, read_sources
from knee.errors import Faults
from knee.io.checksums import content_digest, saved_digests


def items(folder: Path) -> Items:
    for name in ("a.png", "m.png", "v.nii.gz"):
        (folder / name).write_text(name)
    paths = [f"{folder}/a.png", f"{folder}/v.nii.gz#3", f"{folder}/v.nii.gz#12"]
    mirror, invert = np.array([True, False, False]), np.array([False, False, True])
    return Items(
        lambda row: f"m.csv line {row + 2}: ", paths, [f"{folder}/m.png", "", f"{folder}/m.png"], mirror, invert
    )


def test_the_name_is_a_hash_of_options_and_content(tmp_path: Path) -> None:
    found = items(tmp_path)
    sources = read_sources(found, saved_digests([]))
    assert [Path(file).name for file in sources.files] == ["a.png", "v.nii.gz", "m.png"]
    a, m, v = (content_digest(tmp_path / name) for name in ("a.png", "m.png", "v.nii.gz"))
    rows = [[True, False, [a, None], [m, None]], [False, False, [v, 3]], [False, True, [v, 12], [m, None]]]
    wanted = "".join([json.dumps([2, 64, 3]), *(json.dumps(row) + "\n" for row in rows)])
    assert cache_key(found, sources, [2, 64]) == hashlib.sha256(wanted.encode()).hexdigest()[:20]
    (tmp_path / "moved").mkdir()
    moved = items(tmp_path / "moved")
    assert cache_key(moved, read_sources(moved, saved_digests([])), [2, 64]) == cache_key(found, sources, [2, 64])


def test_every_file_that_cannot_be_read_is_named_with_its_rows(tmp_path: Path) -> None:
    found = items(tmp_path)
    (tmp_path / "m.png").unlink()
    (tmp_path / "v.nii.gz").unlink()
    with pytest.raises(Faults, match="4 files cannot be read") as caught:
        read_sources(found, saved_digests([]))
    lines = [f"m.csv line {line}: {tmp_path}/{name}: cannot be read (No such file or directory)"
             for line, name in ((2, "m.png"), (3, "v.nii.gz"), (4, "v.nii.gz"), (4, "m.png"))]  # fmt: skip
    assert list(caught.value.faults) == lines
    shutil.rmtree(tmp_path)
