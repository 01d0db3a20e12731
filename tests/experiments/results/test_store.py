"""Stored results are complete, or an error names them."""

from __future__ import annotations

import pytest

from experiments.results.store import read_result, write_result
from knee.errors import UserError


def test_a_damaged_result_is_an_error_with_its_name(results, tmp_path):
    run = results.runs["dcmt", 0.1, 1]
    write_result(tmp_path, run.table, run.about)
    assert read_result(tmp_path, run.name) is not None
    assert read_result(tmp_path, "phantom-none-f1-s1") is None
    (tmp_path / f"{run.name}.csv").write_text("patient,grade\n1,2\n")
    with pytest.raises(UserError, match=f"{run.name}.json and its CSV do not belong together"):
        read_result(tmp_path, run.name)
    (tmp_path / f"{run.name}.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path, run.name)


def test_a_result_interrupted_between_its_files_is_not_read(results, tmp_path, monkeypatch):
    """The JSON of an earlier run does not belong to the CSV of a new one."""
    run = results.runs["dcmt", 0.1, 1]
    write_result(tmp_path, run.table, run.about)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.results.store.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path, run.table[::-1], run.about)
    assert read_result(tmp_path, run.name) is None
