"""The lock on a folder: one holder at a time, released also after an error, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from knee.errors import UserError
from knee.io.folder_lock import folder_lock

pytest.importorskip("fcntl")


def test_a_second_holder_is_refused_until_the_first_releases(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with folder_lock(folder):
        with (
            pytest.raises(UserError, match="new: another process is writing there; try again"),
            folder_lock(folder, patience=0.0),
        ):
            raise AssertionError("two hold the lock")
        with folder_lock(tmp_path / "other", patience=0.0):
            pass
    with folder_lock(folder, patience=0.0):
        assert list(folder.iterdir()) == []


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    with folder_lock(tmp_path, patience=0.0):
        pass
