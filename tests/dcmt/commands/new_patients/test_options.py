"""Options of predict and export."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from dcmt.commands.new_patients.options import export, predict


def test_predict_writes_tables_and_overlays_of_a_path_unless_asked_otherwise() -> None:
    parser = ArgumentParser()
    predict(parser)
    options = parser.parse_args(["runs/a", "knees", "--out", "graded"])
    assert (options.run, options.images, options.out) == (Path("runs/a"), Path("knees"), Path("graded"))
    assert (options.server, options.study, options.to, options.format) == (None, None, None, "csv,png")
    assert not (
        options.student
        or options.flip_tta
        or options.grade_anyway
        or options.keep_identity
        or options.shift_dates
        or options.force
    )
    fetched = parser.parse_args(["runs/a", "--from", "http://localhost/", "--study", "1.2", "--out", "graded"])
    assert (fetched.images, fetched.server, fetched.study) == (None, "http://localhost/", "1.2")


def test_export_has_one_format_and_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    export(parser)
    assert parser.parse_args(["runs/a", "--out", "a.onnx"]).format == "onnx"
    for wrong in (["runs/a"], ["runs/a", "--out", "a", "--format", "torchscript"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    assert "--out" in capsys.readouterr().err
