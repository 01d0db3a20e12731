"""Options of the review commands."""

from __future__ import annotations

import pytest

from dcmt.cli import main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "html,pdf"], "format pdf; choose from html, png, nifti, dicom"),
        (["--by", "flip"], "give their number with --cases N"),
        (["--cases", "0"], "--cases is 0; give at least 1"),
        (["--cases", "2", "--by", "mismatch"], "no recorded grades to compare with"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(prepared, tmp_path, capsys, options, message):
    assert main(["review", "export", str(prepared.run), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
