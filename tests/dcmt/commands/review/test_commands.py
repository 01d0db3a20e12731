"""The circle by its commands: export, a simulated reader who knows the drawn truth, import, labels, training on them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dcmt.cli import main
from dcmt.commands.review.export import case_facts
from dcmt.commands.selection import Selection
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from knee.data.prepare import load_knee_data
from knee.engine.options import config_from_values
from knee.engine.run import create_run
from knee.intake.scan import image_files
from knee.review.dicom.send import Node, Sent
from knee.review.key import read_key
from knee.review.verdicts import read_verdicts
from knee.review.verdicts_file import Verdict, verdicts_document

Values = dict[str, Any]
ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Reviewed:
    """A run whose manifest lacks the grades that it did not train with, and has one wrong label."""

    run: Path
    manifest: Path
    planted: str
    """The image whose label is wrong."""

    @property
    def truth(self) -> dict[str, int]:
        table = pd.read_csv(self.manifest.parent / "truth.csv")
        return dict(zip(table["image"], table["grade"].astype(int), strict=True))

    @property
    def model_hash(self) -> str:
        newest = max(self.run.glob("checkpoints/*/state.json"))
        best = self.run / "checkpoints" / "best.json"
        if best.exists():
            newest = self.run / "checkpoints" / f"step_{json.loads(best.read_text())['step']:08d}" / "state.json"
        return str(json.loads(newest.read_text())["sha256"]["teacher.safetensors"])[:16]

    def read(self, cases: Iterable[str], *, reviewer: str = "R1", run: str = "tiny") -> list[Verdict]:
        """What a reader who knows the drawn truth says of the cases."""
        key = read_key(self.run / "local" / "review_key.csv")
        grades = {case: self.truth[key[case].image] for case in cases}
        return [
            Verdict(case, reviewer, "2025-03-01T12:00:00Z", run, self.model_hash, grade, grade, "agree", "")
            for case, grade in grades.items()
        ]


@pytest.fixture(scope="module")
def prepared(trained_run, phantom, tmp_path_factory) -> Reviewed:
    """Exported once as a page and pictures, all unlabeled cases; not to be changed."""
    folder = tmp_path_factory.mktemp("reviewed")
    shutil.copytree(phantom.parent, folder / "data", ignore=shutil.ignore_patterns("cache"))
    run = Path(shutil.copytree(trained_run.path, folder / "tiny"))
    manifest, private = folder / "data" / "manifest.csv", run / "local" / "paths.yaml"
    paths = yaml.safe_load(private.read_text())
    paths |= {"data.manifest": str(manifest), "data.split": str(manifest.parent / "split.csv")}
    private.write_text(yaml.safe_dump(paths))
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    rank = pd.read_csv(manifest.parent / "split.csv").set_index("image")["rank"].loc[table["image"]].to_numpy()
    train = (table["split"] == "train").to_numpy()
    table.loc[train & (rank >= 0.6), "grade"] = ""
    labeled = table.index[train & (rank < 0.6)]
    common = table["grade"].loc[labeled].mode()[0]
    planted = labeled[(table["grade"].loc[labeled] == common).to_numpy()][0]
    table.loc[planted, "grade"] = str((int(common) + 1) % 3)
    table.to_csv(manifest, index=False)
    assert main(["review", "export", str(run), "--format", "html,png"]) == 0
    return Reviewed(run, manifest, str(table.loc[planted, "image"]))


@pytest.fixture
def reviewed(prepared, tmp_path) -> Reviewed:
    """A copy of the run to change; it keeps its name, which verdicts name."""
    return replace(prepared, run=Path(shutil.copytree(prepared.run, tmp_path / "tiny")))


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Writes one reader's verdicts as the page does, with changes to the document's head."""

    def write(verdicts: list[Verdict], **changes: object) -> Path:
        path = tmp_path / f"verdicts_{verdicts[0].reviewer}.json"
        path.write_text(json.dumps(verdicts_document(verdicts, grade_set="cartilage", grades=3) | changes))
        return path

    return write


def _page(folder: Path) -> str:
    return (folder / "review.html").read_text(encoding="utf-8")


def _cases(folder: Path) -> list[Values]:
    return [json.loads(text) for text in re.findall(r'class="case">(.*?)</script>', _page(folder))]


def _unlabeled(manifest: Path) -> int:
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    return int(((table["split"] == "train") & (table["grade"] == "")).sum())


def test_every_unlabeled_case_is_exported_by_its_hash_alone(prepared):
    folder = prepared.run / "review" / "unlabeled"
    cases = _cases(folder)
    assert len(cases) == _unlabeled(prepared.manifest) > 0
    assert all(case["grade"] is None and case["split"] == "unlabeled" for case in cases)
    names = {case["case"] for case in cases}
    assert {path.name for path in (folder / "png").iterdir()} == {
        f"{name}_{network}.png" for name in names for network in ("student", "teacher")
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


def test_labels_of_a_run_whose_data_moved_tell_where_to_write_its_place(reviewed, save, tmp_path, capsys):
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


def test_a_case_knows_how_its_image_was_prepared(grader_config):
    data = load_knee_data(grader_config().data)
    inverted = np.arange(len(data.cache.inverted)) == 3
    changed = replace(data, cache=replace(data.cache, inverted=inverted), percentiles=(1.0, 90.0))
    facts = case_facts(Selection(None, changed, np.arange(5), "train"))  # type: ignore[arg-type]
    assert [facts(row).source.inverted for row in range(5)] == inverted[:5].tolist()
    assert facts(3).source.percentiles == (1.0, 90.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "html,pdf"], "format pdf; choose from html, png, nifti, dicom"),
        (["--by", "flip"], "give their number with --cases N"),
        (["--cases", "0"], "--cases is 0; give at least 1"),
        (["--cases", "2", "--by", "mismatch"], "no recorded grades to compare with"),
    ],
)
def test_a_choice_that_makes_no_sense_is_told(prepared, tmp_path, capsys, options, message):
    assert main(["review", "export", str(prepared.run), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_was_left_out_before_is_told(trained_run, reviewed, tmp_path, capsys):
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


def write_sanity(run: Path, content: bytes = b"the run's", *, step: int = 6) -> None:
    """What ``review sanity`` leaves, of the checkpoint of a step."""
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "sanity.png").write_bytes(content)
    (run / "sanity.json").write_text(json.dumps({"checkpoint_step": step}))


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


def test_objects_are_exported_and_sent(reviewed, capsys, monkeypatch):
    """The sending itself is tested against a real server in tests/knee/review."""
    assert main(["review", "export", str(reviewed.run), "--cases", "1", "--format", "dicom,nifti", "--force"]) == 0
    folder = reviewed.run / "review" / "unlabeled"
    assert len(list((folder / "nifti").iterdir())) == 2
    objects = sorted((folder / "dicom").iterdir())
    assert len(objects) >= 2
    capsys.readouterr()
    refusals = [((objects[0], "status 0xA700 full"),), ()]

    def send(paths: list[Path], node: Node) -> Sent:
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


@pytest.mark.slow
def test_the_experiment_of_the_circle_runs(tmp_path, command_environment):
    """The machinery alone, in a few steps: its numbers are measured in docs/results."""
    config = tmp_path / "tiny.yaml"
    values: Values = {
        "data": {"labeled_per_batch": 4, "unlabeled_per_batch": 2},
        "model": {"backbone": "resnet10t", "stage": 2, "stride": 8},
        "fit": {"steps": 2, "validate_every": 2, "precision": "fp32", "device": "cpu", "threads": 1},
        "report": {"tensorboard": False, "cases": 1, "bootstrap": 100},
    }
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "experiments.review_circle", "--folder", str(tmp_path / "circle")]
    command += [
        "--patients",
        "14",
        "--size",
        "48",
        "--fraction",
        "0.6",
        "--wrong",
        "0.2",
        "--cases",
        "4",
        "--again",
        "3",
    ]
    command += ["--config", str(config), "--out", str(tmp_path / "results.md")]
    for jobs in ("2", "1"):  # again: what is done is not done anew
        done = subprocess.run(
            [*command, "--jobs", jobs],
            env=command_environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "s0_start: done" in done.stdout
        row = (tmp_path / "results.md").read_text().splitlines()[6].split("|")
        assert row[1].strip() == "0" and len(row) == 11
        assert all(0 <= float(value) <= 1 for value in row[4:7])
    labels = sorted((tmp_path / "circle" / "data").glob("circle_*.csv"))
    graded = [int(pd.read_csv(path)["grade"].notna().sum()) for path in labels]
    assert sorted(graded) == [min(graded), min(graded) + 4, min(graded) + 4]
