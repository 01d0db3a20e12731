"""Folders that review commands write in: marked as the toolkit's own, unless images were there."""

from __future__ import annotations

import pytest

from dcmt.cli import main
from knee.intake.scan import image_files

from .conftest import write_sanity


@pytest.mark.parametrize(
    ("command", "options"),
    [(["review", "export"], ["--format", "html,png"]), (["attention"], ["--split", "test"])],
    ids=["export", "attention"],
)
def test_what_is_written_among_images_is_not_taken_for_images(reviewed, tmp_path, capsys, command, options):
    write_sanity(reviewed.run)
    data = tmp_path / "data"
    (data / "2").mkdir(parents=True)
    (data / "2" / "1L.png").touch()
    command = [*command, str(reviewed.run), "--cases", "2", *options]
    assert main([*command, "--out", str(data / "shown")]) == 0
    assert "note:" not in capsys.readouterr().out
    assert len(list((data / "shown").rglob("*.png"))) >= 3
    assert image_files(data) == ["2/1L.png"]
    assert main([*command, "--out", str(data / "shown"), "--force"]) == 0
    assert "note:" not in capsys.readouterr().out
    # Scans must not pass by a folder of images because something was written beside them.
    assert main([*command, "--out", str(data / "2")]) == 0
    assert f"note: {data / '2'} already contained images, so it is not marked" in capsys.readouterr().out
    assert "2/1L.png" in image_files(data)
