"""Memory-mapped arrays: sent to workers by name as a whole and by value in part; reserved before they are written."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from knee.io.shared_array import SharedArray, create_bytes, open_shared


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(100 * 40 * 40, dtype=np.float32).reshape(100, 40, 40))
    return tmp_path / "a.npy"


def test_a_whole_array_is_pickled_as_its_name(path: Path) -> None:
    array = open_shared(path)
    sent = pickle.dumps(array)
    assert len(sent) < 1000 < array.nbytes
    received = pickle.loads(sent)
    assert isinstance(received, SharedArray)
    assert np.array_equal(received, array)
    with pytest.raises(ValueError, match="read-only"):
        received[0, 0, 0] = 1


def test_parts_and_results_are_pickled_as_values(path: Path) -> None:
    array = open_shared(path)
    for part in (array[3], array[2:5, ::2], array[[1, 7]], array * 2):
        received = pickle.loads(pickle.dumps(part))
        assert type(received) is np.ndarray
        assert np.array_equal(received, np.asarray(part))


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"not an array"])
def test_damaged_files_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises((OSError, ValueError)):
        open_shared(path)


def test_created_bytes_are_zero_and_keep_what_is_written(tmp_path: Path) -> None:
    array = create_bytes(tmp_path / "b.npy", (5, 8, 8), rows=[1, 3])
    assert not array.any()
    array[3] = 7
    array.flush()
    again = open_shared(tmp_path / "b.npy")
    assert again.shape == (5, 8, 8) and again.dtype == np.uint8
    assert (again[3] == 7).all() and again.sum() == 7 * 64
