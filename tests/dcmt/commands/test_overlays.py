"""dcmt attention: one overlay a case, named by its hash, and a contact sheet."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2

from dcmt.cli import main
from knee.engine.run import RunFolder


def test_each_case_has_an_overlay_named_by_its_hash(trained_run: RunFolder, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(trained_run.path, tmp_path / "run"))
    command = ["attention", str(run), "--split", "val", "--cases", "2", "--device", "cpu"]
    assert main(command) == 0
    folder = run / "attention_val"
    names = sorted(path.name for path in folder.iterdir())
    assert names[-1] == "sheet.png" and len(names) == 3
    assert all(re.fullmatch(r"c?[0-9a-f]+\.png", name) for name in names[:-1]), names
    pictures = [cv2.imread(str(folder / name)) for name in names]
    assert all(picture.ndim == 3 and picture.std() > 1 for picture in pictures)
    assert pictures[-1].shape[1] > pictures[0].shape[1] / 2
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(command) == 2
    assert "sheet.png: exists already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_more_cases_than_there_are_give_all_of_them(trained_run: RunFolder, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["attention", str(trained_run.path), "--split", "val", "--cases", "500", "--out", str(out)]) == 0
    drawn = [path for path in out.glob("*.png") if path.name != "sheet.png"]
    assert f"{len(drawn)} overlays in {out}; contact sheet of {min(12, len(drawn))}" in capsys.readouterr().out
