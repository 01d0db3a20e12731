"""Folders that the toolkit wrote: marked ones, caches and runs, and nothing that merely resembles one."""

from __future__ import annotations

from pathlib import Path

import pytest

from knee.io.own_folders import MARK, is_own, mark_as_own

CACHE = ["images.npy", "masks.npy", "has_mask.npy", "geometries.npy"]


def test_a_marked_folder_is_own_and_can_be_marked_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        mark_as_own(folder)
    names = [path.name for path in folder.iterdir()]
    assert names == [MARK], "no scratch file is left"
    assert is_own(names, [])
    assert not is_own([path.name for path in folder.parent.iterdir()], ["b"]), "a mark counts for its own folder"


@pytest.mark.parametrize("missing", CACHE)
def test_a_cache_is_own_only_as_a_whole(missing: str) -> None:
    assert is_own([*CACHE, "more.txt"], [])
    assert not is_own([name for name in CACHE if name != missing], [])


def test_a_run_needs_its_config_and_a_folder_of_its_own() -> None:
    assert is_own(["config.yaml"], ["local"]) and is_own(["config.yaml"], ["checkpoints", "figures"])
    assert not is_own(["config.yaml"], ["images"])
    assert not is_own(["metrics.csv"], ["local", "checkpoints"])
