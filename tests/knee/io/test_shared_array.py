"""Memory-mapped arrays: sent to workers by name as a whole and by value in part; reserved before they are written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import knee.io.shared_array
from knee.io.shared_array import (
    SharedArray,
    create_bytes,
    create_shards,
    facts_of,
    open_shards,
    open_shared,
    pixels_digest,
)


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


def test_shards_of_bounded_size_are_read_as_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knee.io.shared_array, "SHARD_BYTES", 3 * 64 + 63)  # three images of 8 x 8 in each
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    images[4] = 9
    written = create_shards(tmp_path / "i.npy", images.shape, rows=range(8))
    for row, image in enumerate(images):
        written[row] = image
    written.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.1.npy", "i.2.npy", "i.npy"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * 64 + 128, "128 bytes are the header's"
    sent = pickle.dumps(open_shards(tmp_path / "i.npy"))
    assert len(sent) < 1500, "each shard is sent as its name"
    for found in (open_shards(tmp_path / "i.npy"), pickle.loads(sent)):
        assert (found.shape, found.ndim, found.dtype, len(found)) == (images.shape, 3, np.uint8, 8)
        parts: list[Any] = [0, 5, -1, slice(2, 7), slice(None, None, -3), np.array([7, 0, 3, 3]), np.zeros(0, np.int64)]
        for part in parts:
            assert np.array_equal(found[part], images[part])
        with pytest.raises(IndexError, match="row 8 of 8"):
            found[8]
        assert [image.sum() for image in found] == [image.sum() for image in images]
        with pytest.raises(ValueError, match="read-only"):
            found[1] = 0
    assert (facts_of(open_shards(tmp_path / "i.npy")) == facts_of(images)).all()
    assert pixels_digest(open_shards(tmp_path / "i.npy"), images) == pixels_digest(images, images)


def test_facts_are_sums_and_a_digest_unless_the_image_is_constant() -> None:
    images = np.random.default_rng(1).integers(0, 256, (600, 4, 4), dtype=np.uint8)
    images[3], images[500] = 0, 255
    images[7] = images[400]
    facts = facts_of(images)
    assert facts["sum"].tolist() == images.sum((1, 2), dtype=np.int64).tolist()
    assert facts["squares"].tolist() == (images.astype(np.int64) ** 2).sum((1, 2)).tolist()
    assert np.flatnonzero(facts["digest"] == b"").tolist() == [3, 500]
    assert facts["digest"][7] == facts["digest"][400]
    assert len(set(facts["digest"].tolist())) == 598
