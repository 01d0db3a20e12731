"""The commands that check and split data: all faults at once, and going on without bad rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dcmt.cli import main
from dcmt.config import GraderConfig
from knee.data.prepare import load_knee_data
from knee.data.splits import read_split
from knee.images.read import write_png
from knee.phantom.scenes import draw_scene

BAD = {
    3: "KL7",
    4: "already on line 2",
    5: "gone.png",
    6: "damaged",
    7: "all pixels are 7",
    8: "has 6 × 5 pixels, its image 12 × 10",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest of 20 images; lines 3 to 8 are bad, each in another way. The split file has all but line 8."""
    rng = np.random.default_rng(0)
    for number in range(20):
        write_png(tmp_path / f"{number}.png", rng.integers(0, 256, (10, 12), np.uint8))
    write_png(tmp_path / "flat.png", np.full((10, 12), 7, np.uint8))
    write_png(tmp_path / "small.png", np.ones((5, 6), np.uint8))
    (tmp_path / "short.png").write_bytes((tmp_path / "1.png").read_bytes()[:-40])
    rows = [f"{number}.png,p{number // 2},,{number % 3},,train" for number in range(20)]
    rows[1] = "1.png,p0,,KL7,,train"
    rows[2] = rows[0]
    for number, name in ((3, "gone"), (4, "short"), (5, "flat")):
        rows[number] = f"{name}.png,p{number},,0,,train"
    rows[6] = "6.png,p6,,0,small.png,train"
    (tmp_path / "manifest.csv").write_text("image,patient,side,grade,mask,split\n" + "\n".join(rows) + "\n")
    images = pd.read_csv(tmp_path / "manifest.csv")["image"].drop_duplicates()
    split = pd.DataFrame({"image": images[images != "6.png"], "split": "train", "rank": 0.0})
    split.to_csv(tmp_path / "split.csv", index=False)
    return tmp_path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_check_lists_all_faults_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = folder / "split.csv"
    split.write_text(
        split.read_text().replace("18.png,train", "18.png,test").replace("17.png,train,0.0", "17.png,dev,2")
    )
    manifest = ["check", folder / "manifest.csv", "--grade-set", "cartilage"]
    assert run(*manifest, "--split", split) == 2
    told = capsys.readouterr().err
    for line, reason in BAD.items():
        assert any(f"manifest.csv line {line}: " in row and reason in row for row in told.splitlines()), line
    assert "split 'dev' is not train, val or test" in told
    assert "rank '2' is not a number in [0, 1)" in told
    assert "patient 'p9' is in more than one split: test ('18.png') and train ('19.png')" in told
    assert "manifest.csv line 8: image '6.png' is not in the split" in told
    assert "Traceback" not in told
    # A leak is never skipped.
    assert run(*manifest, "--split", split, "--skip-bad", folder / "r.csv") == 2
    assert "errors that cannot be skipped" in capsys.readouterr().err
    assert not (folder / "r.csv").exists()


def test_check_goes_on_without_the_bad_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", folder / "manifest.csv", "--grade-set", "cartilage", "--split", folder / "split.csv"]
    assert run(*command, "--skip-bad", folder / "rejected.csv") == 0
    assert "6 of 20 rows are bad; they are listed in" in capsys.readouterr().out
    rejected = pd.read_csv(folder / "rejected.csv")
    assert rejected["line"].tolist() == list(BAD)
    assert all(BAD[line] in reason for line, reason in zip(rejected["line"], rejected["reason"], strict=True))
    assert run(*command, "--skip-bad", folder / "rejected.csv") == 2
    assert "use --force" in capsys.readouterr().err
    assert run(*command, "--skip-bad", folder / "rejected.csv", "--force") == 0


def test_sound_data_are_said_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "sound.csv").write_text("\n".join([lines[0], *lines[8:]]))
    assert run("check", folder / "sound.csv", "--grade-set", "cartilage") == 0
    assert "13 images, all valid" in capsys.readouterr().out
    assert run("check", folder / "sound.csv", "--grade-set", "cartilage", "--skip-bad", folder / "none.csv") == 0
    assert (folder / "none.csv").read_text() == "line,image,reason\n"


def test_split_leaves_bad_rows_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["split", folder / "manifest.csv", "--grade-set", "cartilage", "--out", folder / "new.csv"]
    assert run(*command) == 2
    assert "line 3: grade 'KL7'" in capsys.readouterr().err
    assert run(*command, "--skip-bad", folder / "rejected.csv") == 0
    assert len(pd.read_csv(folder / "new.csv")) == 14
    assert run(*command, "--skip-bad", folder / "other.csv") == 2
    assert not (folder / "other.csv").exists()


def test_training_data_without_the_bad_rows(folder: Path, grader_config: Callable[..., GraderConfig]) -> None:
    names = {"data.manifest": folder / "manifest.csv", "data.split": folder / "split.csv"}
    config = grader_config(**{name: str(path) for name, path in names.items()}, **{"data.skip_bad": True}).data
    data = load_knee_data(config, rejected=folder / "rejected.csv", graded=False)
    assert data.manifest.table["line"].tolist() == [2, *range(9, 22)]
    assert len(data.cache.images) == len(data.split.frame) == 14
    assert pd.read_csv(folder / "rejected.csv")["line"].tolist() == list(BAD)
    assert data.split.frame["image"].tolist() == data.manifest.table["image"].tolist()
    assert read_split(folder / "split.csv", data.manifest).frame.equals(data.split.frame)


def test_a_folder_without_grades_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my knees"
    write_png(folder / "1_L.png", np.arange(120, dtype=np.uint8).reshape(10, 12))
    assert run("manifest", folder) == 0
    told = capsys.readouterr().out
    assert "by grade none; ungraded: 1" in told
    assert "no image has a grade" in told
    assert "--grades" in told
    assert f"dcmt split '{folder / 'manifest.csv'}' --out" in told
    (tmp_path / "notes.csv").write_text("image,report\n1_L.png,no narrowing\n")
    options = ["--grades", tmp_path / "notes.csv", "--column", "grade=", "--report", "report"]
    assert run("manifest", folder, *options, "--out", tmp_path / "m.csv") == 0
    told = capsys.readouterr().out
    assert "by grade none; ungraded: 1" in told
    assert "no image has a grade" not in told  # as the user has said


def test_grades_of_another_set_are_told_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "manifest.csv").read_text().replace(",,2,,", ",,4,,")
    (folder / "kl.csv").write_text(text)
    assert run("split", folder / "kl.csv", "--grade-set", "cartilage", "--out", folder / "new.csv") == 2
    assert "grades are read as those of 'cartilage'; --grade-set" in capsys.readouterr().err


def test_manifest_says_how_patients_and_grades_were_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0/p1/slice0", "0/p1/slice1", "1/p2/slice0", "Stage 3/p3/slice0"):
        write_png(tmp_path / f"{name}.png", np.arange(120, dtype=np.uint8).reshape(10, 12))
    assert run("manifest", tmp_path) == 0
    told = capsys.readouterr().out
    assert "The patient is the name of the file's folder" in told
    assert "No grade is read from the folder 'Stage 3'" in told
    assert pd.read_csv(tmp_path / "manifest.csv")["patient"].tolist() == ["p1", "p1", "p2", "p3"]
    # Four equal pictures of three patients and two grades.
    assert run("check", tmp_path / "manifest.csv") == 2
    assert "has the same pixels as" in capsys.readouterr().err
    assert run("manifest", tmp_path, "--pattern", "file", "--force") == 0
    assert set(pd.read_csv(tmp_path / "manifest.csv")["patient"]) == {"slice0", "slice1"}


def test_check_says_what_is_worth_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "1.png", draw_scene(seed=7, number=0, kind="both", longest=240).image)
    assert run("manifest", tmp_path) == 0
    capsys.readouterr()
    assert run("check", tmp_path / "manifest.csv") == 0
    printed = capsys.readouterr().out
    assert "please check: 1 image (line 2) of two knees, but an image is graded as one" in printed
    assert "1 images, all valid" in printed


def test_manifest_takes_grades_from_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("7_L", "7_R", "8_L"):
        write_png(tmp_path / "images" / f"{name}.png", rng.integers(0, 256, (10, 12), np.uint8))
    sheet = tmp_path / "grades.csv"
    sheet.write_text("who;which;visit;KL;KL again\n7;1;a;2;0\n7;2;a;TKR;0\n7;2;b;4;0\n8;2;a;1;0\n", encoding="utf-8")
    out = tmp_path / "manifest.csv"
    asked = ("manifest", tmp_path / "images", "--grades", sheet, "--out", out)
    assert run(*asked) == 2
    assert "--column 'patient=NAME'" in capsys.readouterr().err
    sides = ("--side", "1=R", "--side", "2=L")
    named = (*asked, "--column", "patient=who", "--column", "side=which", *sides)
    assert run(*named) == 2
    told = capsys.readouterr().err
    assert "grades.csv row 3: grade 'TKR' is not 0–4" in told
    assert "--missing 'TKR'" in told
    assert not out.exists()
    assert run(*named, "--missing", "tkr", "--only", "visit=a") == 0
    assert "2 of 3 images have a grade in the sheet" in capsys.readouterr().out
    table = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert table["image"].tolist() == ["images/7_L.png", "images/7_R.png", "images/8_L.png"]
    assert table["grade"].tolist() == ["", "2", "1"]
    assert run("check", out) == 0
    out.write_text("kept")
    assert run(*named, "--missing", "TKR", "--only", "visit=a") == 2
    assert out.read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--missing", "9"], "--missing describes the spreadsheet of --grades; give --grades too"),
        (["--grades", "g.csv", "--side", "1=right"], "--side 1=right: a side is L or R"),
        (["--grades", "g.csv", "--column", "grade"], "'grade' is not NAME=VALUE"),
        (["--grades", "g.csv", "--only", "v=a", "--only", "v=b"], "--only v=… is given twice; keep only one"),
        (["--grades", "g.csv", "--side", "1=L", "--side", "1=R"], "--side 1=… is given twice; keep only one"),
        (["--grades", "g.csv"], "g.csv: cannot be read"),
    ],
)
def test_how_a_spreadsheet_is_read_needs_words_that_fit(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "7_L.png", np.arange(120, dtype=np.uint8).reshape(10, 12))
    try:
        assert run("manifest", tmp_path, *options) == 2
    except SystemExit as end:  # argparse
        assert end.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "manifest.csv").exists()


def test_no_command_writes_over_what_it_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not with --force either: that is for earlier results."""
    manifest, split, sheet = folder / "manifest.csv", folder / "split.csv", folder / "grades.csv"
    sheet.write_text("file,KL\n0.png,1\n")
    before = {path: path.read_bytes() for path in (manifest, split, sheet)}
    new = folder / "new.csv"
    for command, told in (
        (("manifest", folder, "--grades", sheet, "--out", sheet), "is also the spreadsheet, so it is not overwritten"),
        (("split", manifest, "--out", manifest), "is also the manifest, so it is not overwritten"),
        (("split", manifest, "--skip-bad", manifest, "--out", new), "is also the manifest, so it is not overwritten"),
        (
            ("split", manifest, "--skip-bad", new, "--out", new),
            "is also the list of bad rows, so it is not overwritten",
        ),
        (("split", manifest, "--skip-bad", folder / "new_1.csv", "--folds", "3", "--out", new), "list of bad rows"),
        (("check", manifest, "--skip-bad", manifest), "is also the manifest, so it is not overwritten"),
        (
            ("check", manifest, "--split", split, "--skip-bad", split),
            "is also the split file, so it is not overwritten",
        ),
    ):
        assert run(*command, "--force") == 2
        assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert not new.exists()


def test_check_lists_bad_report_files_with_the_other_errors(tmp_path, phantom, capsys):
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    path = tmp_path / "data" / "manifest.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["report"] = "a report"
    table.loc[0, "report"], table.loc[1, "side"] = "absent.txt", "X"
    table.to_csv(path, index=False)
    assert main(["check", str(path), "--grade-set", "cartilage"]) == 2
    told = capsys.readouterr().err
    assert "line 2: report 'absent.txt' cannot be read" in told
    assert "line 3: side 'X'" in told
