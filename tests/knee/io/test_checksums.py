"""Checksums of files: a file is read again once anything about it changed."""

import os

import numpy as np

from knee.io.checksums import (
    FileDigests,
    content_digest,
    digests_in,
    remembered_digests,
    save_digests,
    saved_digests,
)


def aged(found: FileDigests, digest: bytes) -> FileDigests:
    """As if the files had been read long after they were written, with a digest that tells whether it is used."""
    older = found.copy()
    older["digest"] = digest
    return older


def test_a_source_is_read_once_while_nothing_about_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    date = path.stat().st_mtime_ns
    nothing = saved_digests([])
    unsettled, reasons = remembered_digests([str(path)], nothing)
    assert not reasons
    assert unsettled["inode"] == 0, "a second write within the clock of the file system would have the same date"
    assert unsettled["digest"].tolist() == [content_digest(path).encode()]
    monkeypatch.setattr("knee.io.checksums._SETTLED_SECONDS", -1.0)
    settled, _ = remembered_digests([str(path)], nothing)
    known = aged(settled, b"remembered")
    assert remembered_digests([str(path)], known)[0]["digest"].tolist() == [b"remembered"]
    for changed in (b"two", b"more"):
        path.write_bytes(changed)
        os.utime(path, ns=(date, date))
        assert remembered_digests([str(path)], known)[0]["digest"].tolist() == [content_digest(path).encode()]


def test_digests_of_several_caches_are_known_and_other_files_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("knee.io.checksums._SETTLED_SECONDS", -1.0)
    names = [str(tmp_path / name) for name in "abc"]
    for name in names:
        with open(name, "w") as file:  # noqa: PTH123
            file.write(name)
    found, _ = remembered_digests(names, saved_digests([]))
    stale = aged(found[:2], b"stale")
    stale["changed"] -= 1
    save_digests(tmp_path / "first.npy", stale)
    save_digests(tmp_path / "second.npy", found[:2])
    (tmp_path / "third.npy").write_bytes(b"damaged")
    np.save(tmp_path / "other.npy", np.zeros(3))
    known = saved_digests([tmp_path / f"{name}.npy" for name in ("first", "second", "third", "other", "missing")])
    assert len(known) == 4
    assert digests_in(known, found).tolist() == [*found["digest"][:2].tolist(), b""]


def test_files_that_cannot_be_read_are_named_by_their_place(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "folder").mkdir()
    names = [str(tmp_path / name) for name in ("missing", "a", "folder")]
    found, reasons = remembered_digests(names, saved_digests([]))
    assert reasons == {0: "No such file or directory", 2: "Is a directory"}
    assert found["digest"][1] == content_digest(tmp_path / "a").encode()
