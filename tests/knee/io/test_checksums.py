"""Checksums of files: a file is read again once anything about it changed."""

import os

from knee.io.checksums import content_digest, remembered_digest


def test_a_source_is_read_once_while_nothing_about_it_changes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    date = path.stat().st_mtime_ns
    unsettled = remembered_digest(str(path), {})
    assert unsettled[0] is None, "a second write within the clock of the file system would have the same date"
    known = {str(path): [[3, date, path.stat().st_ctime_ns, path.stat().st_ino], "remembered"]}
    assert remembered_digest(str(path), known)[1] == "remembered"
    for changed in (b"two", b"more"):
        path.write_bytes(changed)
        os.utime(path, ns=(date, date))
        assert remembered_digest(str(path), known)[1] == content_digest(path)
