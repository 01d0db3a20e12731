"""dcmt review sanity: measured, drawn, and linked from the page."""

from __future__ import annotations

import json

import pytest

from dcmt.cli import main

from .conftest import _page


def test_the_sanity_check_is_drawn_and_linked(reviewed, tmp_path, capsys):
    assert main(["review", "sanity", str(reviewed.run), "--steps", "2", "--images", "4"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((reviewed.run / "sanity.json").read_text(encoding="utf-8"))
    shares = [row["share"] for row in record["randomisation"]]
    assert shares[0] == 0 < shares[1] < shares[2] == 1
    assert record["randomisation"][0]["correlation"] == pytest.approx(1)
    assert set(record["overlap"]["tiou"]) == {"student", "teacher"}
    assert "TIoU on" in printed and "rank correlation" in printed
    out = tmp_path / "out"
    assert main(["review", "export", str(reviewed.run), "--cases", "1", "--out", str(out)]) == 0
    assert '"sanityFigure":"sanity.png"' in _page(out)
    assert (out / "sanity.png").read_bytes() == (reviewed.run / "figures" / "sanity.png").read_bytes()
