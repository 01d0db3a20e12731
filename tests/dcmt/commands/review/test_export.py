"""dcmt review export: which cases, which formats, what is left alone."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcmt.cli import main
from dcmt.commands.review.export import case_facts
from dcmt.commands.selection import Selection
from knee.data.prepare import load_knee_data
from knee.review.key import read_key

from .conftest import _cases, _page, _unlabeled, write_sanity


def test_every_unlabeled_case_is_exported_by_its_hash_only(prepared):
    folder = prepared.run / "review" / "unlabeled"
    cases = _cases(folder)
    assert len(cases) == _unlabeled(prepared.manifest) > 0
    assert all(case["grade"] is None and case["split"] == "unlabeled" for case in cases)
    names = {case["case"] for case in cases}
    assert {path.name for path in (folder / "png").iterdir()} == {
        f"{name}_{network}.png" for name in names for network in ("student", "teacher", "evidence")
    }
    key = read_key(prepared.run / "local" / "review_key.csv")
    assert key.keys() == names
    assert (prepared.run / "local" / "review_key.csv").stat().st_mode & 0o077 == 0
    for path in prepared.run.rglob("*"):
        if path.is_file() and "local" not in path.parts and path.suffix in (".html", ".json", ".yaml", ".csv"):
            text = re.sub(r'"map":"[^"]*"|id="image-\w+">[^<]*', "", path.read_text(encoding="utf-8"))
            for case in key.values():
                assert case.patient not in text and Path(case.image).stem not in text, path
        assert not re.search(r"P\d{4}", path.name)


def test_grades_that_the_run_did_not_use_are_not_shown(trained_run, tmp_path):
    """The manifest has them here: the run left them out by its labeled fraction."""
    run = shutil.copytree(trained_run.path, tmp_path / "tiny")
    assert main(["review", "export", str(run), "--out", str(tmp_path / "out")]) == 0
    cases = _cases(tmp_path / "out")
    assert cases and all(case["grade"] is None and "mismatch" not in case["doubts"] for case in cases)


def test_the_cases_chosen_are_the_most_doubtful(prepared, tmp_path, capsys):
    everything = _cases(prepared.run / "review" / "unlabeled")
    most = sorted((case["doubts"]["distance"] for case in everything), reverse=True)[:3]
    command = ["review", "export", str(prepared.run), "--cases", "3", "--by", "distance", "--title", "<b>knees</b>"]
    assert main([*command, "--out", str(tmp_path / "three")]) == 0
    chosen = _cases(tmp_path / "three")
    assert [case["doubts"]["distance"] for case in chosen] == most
    assert "<b>knees" not in _page(tmp_path / "three")
    assert f"3 of {len(everything)} cases" in capsys.readouterr().out
    before = _page(tmp_path / "three")
    assert main([*command, "--out", str(tmp_path / "three")]) == 2
    assert "--force" in capsys.readouterr().err
    assert _page(tmp_path / "three") == before
    key = read_key(prepared.run / "local" / "review_key.csv")
    assert len(key) == len(everything), "cases of earlier exports stay in the key"


def test_a_case_has_the_facts_of_how_its_image_was_prepared(grader_config):
    data = load_knee_data(grader_config().data)
    inverted = np.arange(len(data.cache.inverted)) == 3
    changed = replace(data, cache=replace(data.cache, inverted=inverted), percentiles=(1.0, 90.0))
    facts = case_facts(Selection(None, changed, np.arange(5), "train"))  # type: ignore[arg-type]
    assert [facts(row).source.inverted for row in range(5)] == inverted[:5].tolist()
    assert facts(3).source.percentiles == (1.0, 90.0)


@pytest.mark.parametrize("record", [None, "{", '{"checkpoint_step": 3}', "[]"])
def test_a_figure_of_other_weights_is_not_linked(record, reviewed, tmp_path):
    write_sanity(reviewed.run)
    if record is None:
        (reviewed.run / "sanity.json").unlink()
    else:
        (reviewed.run / "sanity.json").write_text(record)
    out = tmp_path / "out"
    assert main(["review", "export", str(reviewed.run), "--cases", "1", "--checkpoint", "last", "--out", str(out)]) == 0
    assert '"sanityFigure":"sanity.png"' not in _page(out)
    assert not (out / "sanity.png").exists()


def test_a_figure_of_ones_own_is_not_overwritten_unasked(reviewed, tmp_path, capsys):
    write_sanity(reviewed.run, step=int(max(reviewed.run.glob("checkpoints/step_*")).name.removeprefix("step_")))
    out = tmp_path / "out"
    out.mkdir()
    (out / "sanity.png").write_bytes(b"my own")
    command = ["review", "export", str(reviewed.run), "--cases", "1", "--checkpoint", "last", "--out", str(out)]
    assert main(command) == 2
    assert "sanity.png: exists already and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["sanity.png"]
    assert (out / "sanity.png").read_bytes() == b"my own"
    assert main([*command, "--force"]) == 0
    assert (out / "sanity.png").read_bytes() == b"the run's"
