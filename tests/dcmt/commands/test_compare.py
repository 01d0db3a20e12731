"""Two runs side by side: the difference, the refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dcmt.cli import main
from knee.engine.run import file_hash
from knee.grades import grade_set_yaml, load_grade_set

from .conftest import refusal


def test_the_difference_is_that_of_the_two_evaluations(trained_run, other_run, tmp_path, capsys):
    runs = [shutil.copytree(trained_run.path, tmp_path / "tiny"), shutil.copytree(other_run, tmp_path / "other")]
    for run in runs:
        assert main(["evaluate", str(run)]) == 0
    first, second = (json.loads((run / "metrics_test.json").read_text())["teacher"] for run in runs)
    capsys.readouterr()
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert found["runs"] == {"tiny": first, "other": second}
    for name in ("accuracy", "macro_f1", "flip_changed", "tiou"):
        before, after = (report["metrics"][name]["value"] for report in (first, second))
        change = found["difference"][name]
        assert change["value"] == pytest.approx(after - before, abs=2e-6)
        assert change["low"] <= change["value"] + 1e-9
        assert change["value"] <= change["high"] + 1e-9
        assert name in printed
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000
    assert "second − first" in printed
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 2
    assert "comparison.json: exists already" in capsys.readouterr().err
    runs[1].rename(tmp_path / "difference")
    runs[1] = tmp_path / "difference"
    assert main(["compare", *map(str, runs), "--no-flip", "--out", str(tmp_path / "out"), "--force"]) == 0


def test_runs_of_another_split_are_refused(trained_run, other_run, tmp_path, capsys):
    changed = shutil.copytree(other_run, tmp_path / "split")
    for state in changed.glob("checkpoints/*/state.json"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"split_sha256": "0" * 16}))
    assert "different split files" in refusal(capsys, "compare", trained_run.path, changed)


def test_runs_that_widen_masks_differently_are_refused(trained_run, other_run, tmp_path, capsys):
    changed = shutil.copytree(other_run, tmp_path / "masks")
    values = yaml.safe_load((changed / "config.yaml").read_text())
    values["data"]["mask_dilation"] = 3
    (changed / "config.yaml").write_text(yaml.safe_dump(values))
    assert re.search(r"data\.mask_dilation \d+ and 3\)", refusal(capsys, "compare", trained_run.path, changed))


@pytest.fixture
def on_manifest(other_run, phantom, tmp_path):
    """The second run, as if trained on another version of the manifest: ``on_manifest(table)``."""
    data = shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache", "images"))
    (data / "images").symlink_to(phantom.parent / "images")
    shutil.rmtree(data / "masks")
    (data / "masks").symlink_to(phantom.parent / "masks")

    def run(table: pd.DataFrame) -> Path:
        table.to_csv(data / "next.csv", index=False)
        copy = Path(shutil.copytree(other_run, tmp_path / "next", dirs_exist_ok=True))
        private = copy / "local" / "paths.yaml"
        paths = yaml.safe_load(private.read_text()) | {"data.manifest": str(data / "next.csv")}
        private.write_text(yaml.safe_dump(paths))
        return copy

    return run


def test_another_version_of_the_manifest_is_compared_on_the_same_cases(trained_run, on_manifest, phantom, capsys):
    """Training grades may differ, as after a review, and rows may be in another order."""
    table = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    train = table["split"] == "train"
    changed = table.index[train][0]
    table.loc[changed, "grade"] = "0" if table.loc[changed, "grade"] != "0" else "1"
    command = ["compare", str(trained_run.path), str(on_manifest(table)), "--no-flip"]
    assert main(command) == 0
    expected = capsys.readouterr().out
    on_manifest(pd.concat([table[~train][::-1], table[train]]))
    assert main(command) == 0
    # The draws of the bootstrap follow the first run's cases: nothing changes with the second's order.
    assert capsys.readouterr().out == expected


def test_other_grades_or_images_of_the_compared_cases_are_refused(trained_run, on_manifest, phantom, capsys):
    table = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    test = table.index[table["split"] == "test"]
    table.loc[test[0], "grade"] = "0" if table.loc[test[0], "grade"] != "0" else "1"
    run = on_manifest(table)
    assert main(["compare", str(trained_run.path), str(run), "--no-flip"]) == 2
    told = capsys.readouterr().err
    assert "the test cases of manifest.csv and next.csv differ" in told
    assert f"{Path(table.loc[test[0], 'image']).name}: grade is" in told
    assert main(["compare", str(trained_run.path), str(run), "--no-flip", "--split", "val"]) == 0


def test_an_image_under_two_names_is_refused(trained_run, on_manifest, phantom, tmp_path, capsys):
    table = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    (tmp_path / "again").symlink_to(phantom.parent / "images")
    again = table[table["split"] == "test"].head(1).copy()
    again["image"] = "../again/" + Path(again["image"].iat[0]).name
    run = on_manifest(pd.concat([table, again]))
    private = yaml.safe_load((run / "local" / "paths.yaml").read_text())
    split = pd.read_csv(private["data.split"], dtype=str)
    row = split[split["image"] == table.loc[again.index[0], "image"]].copy()
    row["image"] = again["image"].iat[0]
    pd.concat([split, row]).to_csv(tmp_path / "split.csv", index=False)
    # As if both had been trained on that split.
    first = Path(shutil.copytree(trained_run.path, tmp_path / "first"))
    for one in (first, run):
        paths = yaml.safe_load((one / "local" / "paths.yaml").read_text())
        paths |= {"data.split": str(tmp_path / "split.csv"), "data.manifest": private["data.manifest"]}
        (one / "local" / "paths.yaml").write_text(yaml.safe_dump(paths))
        for state in one.glob("checkpoints/*/state.json"):
            values = json.loads(state.read_text()) | {"split_sha256": file_hash(tmp_path / "split.csv")}
            state.write_text(json.dumps(values))
    told = refusal(capsys, "compare", first, run, "--no-flip")
    assert re.search(r"next\.csv has \S+ twice in test, under two names \(a link\?\)", told)


def test_grades_of_other_names_are_not_compared_and_of_other_descriptions_are(trained_run, other_run, tmp_path, capsys):
    changed = Path(shutil.copytree(other_run, tmp_path / "worded"))
    grade_set = load_grade_set("cartilage")
    for path, value in ((changed / "config.yaml", "(in local/paths.yaml)"),):
        values = yaml.safe_load(path.read_text())
        values["data"]["grade_set"] = value
        path.write_text(yaml.safe_dump(values))
    worded = dataclasses.replace(grade_set, descriptions=("a", "b", "c"))
    (changed / "grade_set.yaml").write_text(grade_set_yaml(worded))
    assert main(["compare", str(trained_run.path), str(changed), "--no-flip"]) == 0
    capsys.readouterr()
    (changed / "grade_set.yaml").write_text(grade_set_yaml(dataclasses.replace(worded, names=("c", "b", "a"))))
    assert "grade by different sets" in refusal(capsys, "compare", trained_run.path, changed)


def test_other_mistakes_are_refused(trained_run, tmp_path, capsys):
    path = trained_run.path
    assert "given twice" in refusal(capsys, "compare", path, path)
    assert "not a run folder" in refusal(capsys, "compare", path, tmp_path)


def test_flip_ttas_are_compared_with_flip_ttas(trained_run, other_run, tmp_path, capsys):
    runs = [shutil.copytree(trained_run.path, tmp_path / "tiny"), shutil.copytree(other_run, tmp_path / "other")]
    for run in runs:
        assert main(["evaluate", str(run), "--flip-tta"]) == 0
    reports = [json.loads((run / "metrics_test.json").read_text())["teacher"] for run in runs]
    capsys.readouterr()
    assert main(["compare", *map(str, runs), "--flip-tta", "--out", str(tmp_path / "out")]) == 0
    assert "teacher of both, flip TTA, " in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert found["flip_tta"] is True
    assert list(found["runs"].values()) == reports
