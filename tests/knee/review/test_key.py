"""The key of an export: what a case's name stands for."""

from __future__ import annotations

import pytest

from knee.errors import Faults
from knee.review.agreement import agreements
from knee.review.key import read_key, write_key

from .readings import _verdict


def test_the_key_is_read_as_written(tmp_path, key):
    write_key(tmp_path / "key.csv", key.values())
    assert read_key(tmp_path / "key.csv") == key
    (tmp_path / "key.csv").write_text((tmp_path / "key.csv").read_text().replace("unlabeled,1,2", "unlabeled,x,2", 1))
    with pytest.raises(Faults, match="line 2"):
        read_key(tmp_path / "key.csv")


def test_a_key_without_models_is_read_and_counts_as_one_model(tmp_path, key):
    write_key(tmp_path / "key.csv", key.values())
    lines = [line.rpartition(",")[0] for line in (tmp_path / "key.csv").read_text().splitlines()]
    assert lines[0] == "case,image,patient,split,student_grade,teacher_grade", "as keys were before"
    (tmp_path / "old.csv").write_text("\n".join(lines) + "\n")
    assert read_key(tmp_path / "old.csv") == key
    found = agreements([_verdict("ca", 2), _verdict("cb", 1)], read_key(tmp_path / "old.csv"), samples=10)
    assert [(agreement.cases, agreement.left_out) for agreement in found] == [(2, 0), (2, 0)]
