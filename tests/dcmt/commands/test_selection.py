"""Images of a split that commands grade: those that were trained on only on request."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcmt.cli import main
from knee.engine.run import RunFolder


def test_images_that_were_trained_on_are_graded_on_request_only(
    trained_run: RunFolder, other_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained_run.path)
    for command in (["evaluate", run], ["compare", run, str(other_run)]):
        assert main([*command, "--split", "train"]) == 2
        assert "was trained on the images of --split train" in capsys.readouterr().err
    assert main(["compare", run, str(other_run), "--split", "train", "--trained-on"]) == 0
