"""dcmt review import, labels and send: verdicts become labels, and what cannot is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from knee.data.prepare import load_knee_data
from knee.engine.options import config_from_values
from knee.engine.run import create_run
from knee.review.dicom.send import Node, Sent
from knee.review.key import read_key
from knee.review.verdicts import read_verdicts


def test_readings_become_labels_and_training_takes_them(reviewed, save, grader_values, capsys):
    run, truth = reviewed.run, reviewed.truth
    assert main(["review", "export", str(run), "--split", "train"]) == 0
    key = read_key(run / "local" / "review_key.csv")
    wrong = [case for case, keyed in key.items() if keyed.image == reviewed.planted]
    assert key[wrong[0]].split == "train"
    unlabeled = [case for case, keyed in key.items() if keyed.split == "unlabeled"][:6]
    first, second = (save(reviewed.read([*unlabeled, *wrong], reviewer=name)) for name in ("R1", "R2"))
    capsys.readouterr()
    assert main(["review", "import", str(run), str(first), str(second)]) == 0
    assert "14 verdicts added, 0 already in the table" in capsys.readouterr().out
    assert main(["review", "import", str(run), str(first)]) == 0
    assert "0 verdicts added, 7 already in the table" in capsys.readouterr().out
    assert len(read_verdicts(run / "local" / "verdicts.csv", run="tiny", grades=3)) == 14
    out = reviewed.manifest.with_name("manifest_reviewed.csv")
    assert main(["review", "labels", str(run), "--out", str(out), "--force"]) == 0
    printed = capsys.readouterr().out
    assert "median of its readers' final grades" in printed
    assert "R1 – R2: kappa 1.00" in printed and "R1 – teacher: kappa" in printed
    assert "6 graded, 1 corrected, 0 confirmed" in printed

    table = pd.read_csv(out, dtype=str, keep_default_na=False).set_index("image")
    before = pd.read_csv(reviewed.manifest, dtype=str, keep_default_na=False).set_index("image")
    for case in (*unlabeled, *wrong):
        image = key[case].image
        assert table.loc[image, "grade"] == str(truth[image])
        assert table.loc[image, "grade_original"] == before.loc[image, "grade"]
    others = [image for image in table.index if image not in {key[case].image for case in (*unlabeled, *wrong)}]
    assert table.loc[others, "grade"].equals(before.loc[others, "grade"])
    values = grader_values | {"data": grader_values["data"] | {"manifest": str(out)}, "report": {"tensorboard": False}}
    config = config_from_values(GraderConfig, values | {"fit": values["fit"] | {"steps": 2}}, where="test")
    data, old = load_knee_data(config.data), load_knee_data(replace(config.data, manifest=str(reviewed.manifest)))
    assert set(data.labeled) - set(old.labeled) == set(np.flatnonzero(data.manifest.table["review"] == "graded"))
    assert len(data.unlabeled) == len(old.unlabeled) - 6
    train_grader(config, create_run(run.parent / "next", config, kind="grader"), resume=False)


def test_a_case_of_the_test_split_gives_no_label(reviewed, save, tmp_path, capsys):
    run, out = reviewed.run, tmp_path / "new.csv"
    assert main(["review", "export", str(run), "--split", "test", "--cases", "2"]) == 0
    key = read_key(run / "local" / "review_key.csv")
    held_out = [case for case, keyed in key.items() if keyed.split == "test"]
    taken = next(case for case, keyed in key.items() if keyed.split == "unlabeled")
    assert main(["review", "import", str(run), str(save(reviewed.read([*held_out, taken])))]) == 0
    capsys.readouterr()
    assert main(["review", "labels", str(run), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert all(f"case {case} is of the test split" in told for case in held_out)
    assert not out.exists()
    assert main(["review", "labels", str(run), "--out", str(out), "--skip-held-out"]) == 0
    assert "1 graded, 0 corrected, 0 confirmed, 0 undecided, 0 bad image, 2 skipped" in capsys.readouterr().out


def test_verdicts_that_cannot_be_taken_are_refused_whole(reviewed, save, tmp_path, capsys):
    case = next(iter(read_key(reviewed.run / "local" / "review_key.csv")))
    sound = reviewed.read([case])
    wrong = {
        "is of run 'other'": save(reviewed.read([case], run="other", reviewer="R2")),
        "the reader saw another model's maps": save([replace(sound[0], reviewer="R3")], model_hash="0" * 16),
        "case 'c0123456789' is not one of this run": save([replace(sound[0], case="c0123456789", reviewer="R4")]),
        "final_grade 3 is not 0–2": save([replace(sound[0], final_grade=3, reviewer="R5")]),
        "is damaged, not JSON": tmp_path / "damaged.json",
        "missing.json": tmp_path / "missing.json",
    }
    (tmp_path / "damaged.json").write_text('{"schema": "knee-review-verdicts/1", "verdicts": [')
    for message, path in wrong.items():
        assert main(["review", "import", str(reviewed.run), str(save(sound)), str(path)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("dcmt: ") and message in told, told
    assert not (reviewed.run / "local" / "verdicts.csv").exists(), "all or nothing"
    assert main(["review", "import", str(reviewed.run), str(save(sound))]) == 0
    changed = save([replace(sound[0], final_grade=(sound[0].final_grade + 1) % 3, time="2025-03-02T12:00:00Z")])
    assert main(["review", "import", str(reviewed.run), str(changed)]) == 2
    assert "--revise" in capsys.readouterr().err
    assert main(["review", "import", str(reviewed.run), str(changed), "--revise"]) == 0
    assert "1 of them replacing earlier ones" in capsys.readouterr().out
    before = save([replace(sound[0], final_grade=(sound[0].final_grade + 2) % 3, time="2025-02-01T12:00:00Z")])
    assert main(["review", "import", str(reviewed.run), str(before), "--revise"]) == 0
    told = "1 verdicts added, 1 of them older than their readers' verdicts in the table, which stay in force"
    assert told in capsys.readouterr().out


def test_verdicts_of_another_run_or_altered_by_hand_become_no_labels(reviewed, save, tmp_path, capsys):
    case = next(iter(read_key(reviewed.run / "local" / "review_key.csv")))
    table, out = reviewed.run / "local" / "verdicts.csv", tmp_path / "new.csv"
    assert main(["review", "import", str(reviewed.run), str(save(reviewed.read([case])))]) == 0
    header, row = table.read_text().splitlines()
    fields = row.split(",")
    for place, value, message in (
        (3, "another", "verdicts.csv line 3: is of run 'another', not 'tiny'"),
        (6, "3", "verdicts.csv line 3: final_grade '3' is not 0–2 or empty"),
        (7, "Bad image", "verdicts.csv line 3: verdict 'Bad image' is not one of"),
    ):
        altered = [*fields[:place], value, *fields[place + 1 :]]
        table.write_text("\n".join([header, row, ",".join(altered), ""]))
        capsys.readouterr()
        assert main(["review", "labels", str(reviewed.run), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_labels_of_a_run_whose_data_moved_name_the_file_with_its_path(reviewed, save, tmp_path, capsys):
    case = next(iter(read_key(reviewed.run / "local" / "review_key.csv")))
    assert main(["review", "import", str(reviewed.run), str(save(reviewed.read([case])))]) == 0
    private = reviewed.run / "local" / "paths.yaml"
    gone = str(tmp_path / "moved" / "manifest.csv")
    private.write_text(yaml.safe_dump(yaml.safe_load(private.read_text()) | {"data.manifest": gone}))
    capsys.readouterr()
    assert main(["review", "labels", str(reviewed.run), "--out", str(tmp_path / "new.csv")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"data.manifest of {reviewed.run} is {gone}, which does not exist" in told
    assert f"write the current path into {private}, as data.manifest: PATH" in told


def test_steps_out_of_order_name_the_one_to_begin_with(trained_run, reviewed, tmp_path, capsys):
    """The steps out of order: each names the one to begin with."""
    (tmp_path / "some.json").write_text("{}")
    for command, message in (
        (["import", trained_run.path, tmp_path / "some.json"], "export it first: dcmt review export"),
        (["labels", reviewed.run, "--out", tmp_path / "new.csv"], "hand them in with: dcmt review import"),
        (["send", reviewed.run, "--host", "localhost", "--port", 1], "export with --format dicom first"),
        (["export", tmp_path], "is not a run folder"),
        (["sanity", reviewed.run, "--steps", 0], "--steps is 0; it must be at least 1"),
    ):
        assert main(["review", *map(str, command)]) == 2
        assert message in capsys.readouterr().err


def test_rows_that_a_run_left_out_do_not_stop_its_review(reviewed, save, tmp_path, capsys):
    data = Path(shutil.copytree(reviewed.manifest.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache")))
    private = reviewed.run / "local" / "paths.yaml"
    private.write_text(
        yaml.safe_dump(yaml.safe_load(private.read_text()) | {"data.manifest": str(data / "manifest.csv")})
    )
    verdicts = save(reviewed.read(sorted(read_key(reviewed.run / "local" / "review_key.csv"))[:3]))
    assert main(["review", "import", str(reviewed.run), str(verdicts)]) == 0
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    bad = table.index[table["split"] == "val"][0]
    table.loc[bad, "grade"] = "7"
    table.to_csv(data / "manifest.csv", index=False)
    command = ["review", "labels", str(reviewed.run), "--out", str(data / "new.csv")]
    assert main(command) == 2
    config = reviewed.run / "config.yaml"
    config.write_text(config.read_text().replace("skip_bad: false", "skip_bad: true"))
    capsys.readouterr()
    assert main(command) == 0
    assert "1 row that the run left out as bad" in capsys.readouterr().out
    written = pd.read_csv(data / "new.csv", dtype=str, keep_default_na=False)["image"]
    assert set(written) == set(table["image"].drop(bad))


def test_objects_are_exported_and_sent(reviewed, capsys, monkeypatch):
    """The sending itself is tested against a real server in tests/knee/review."""
    assert main(["review", "export", str(reviewed.run), "--cases", "1", "--format", "dicom,nifti", "--force"]) == 0
    folder = reviewed.run / "review" / "unlabeled"
    assert len(list((folder / "nifti").iterdir())) == 2
    objects = sorted((folder / "dicom").iterdir())
    assert len(objects) >= 2
    capsys.readouterr()
    refusals = [((objects[0], "status 0xA700 full"),), ()]

    def send(paths: list[Path], node: Node, *, timeout_s: float) -> Sent:
        assert paths == objects
        assert node == Node("pacs", 11112, "NODE", "DCMT")
        refused = refusals.pop(0)
        return Sent(tuple(paths[len(refused) :]), refused)

    monkeypatch.setattr("dcmt.commands.review.verdicts.send", send)
    command = ["review", "send", str(reviewed.run), "--host", "pacs", "--port", "11112", "--aet", "NODE"]
    assert main(command) == 1, "some were refused"
    printed = capsys.readouterr().out
    assert f"{len(objects) - 1} of {len(objects)} objects were accepted by NODE at pacs:11112" in printed
    assert f"refused: {objects[0].name}: status 0xA700 full" in printed
    assert main([*command[:2], str(folder), *command[3:]]) == 0
    assert main([*command, "--dry-run"]) == 0
    assert f"{len(objects)} objects of" in capsys.readouterr().out, "and the node was not asked a third time"
    for more in ([], ["--host", "pacs"], [*command[3:], "--to", "https://pacs.example/dicom-web"]):
        assert main([*command[:3], *more]) == 2
        assert "either a node, --host NAME --port NUMBER, or a DICOMweb server" in capsys.readouterr().err


def test_reports_and_files_are_not_imported_at_once_and_pictures_have_no_reports(reviewed, save, tmp_path, capsys):
    run = str(reviewed.run)
    for arguments in ([], ["verdicts.json", "--dicom", str(tmp_path)]):
        assert main(["review", "import", run, *arguments]) == 2
        assert "either verdicts files of the page, or a folder of DICOM reports" in capsys.readouterr().err
    assert main(["review", "import", run, "--dicom", str(tmp_path)]) == 2
    assert "no exported case is a readable DICOM file" in capsys.readouterr().err
