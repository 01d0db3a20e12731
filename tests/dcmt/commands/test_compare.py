"""Two runs side by side: the difference, the refusals; graders that were not trained end to end."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import dcmt.commands.untrained
from clip_koa.probe import ProbeGrader
from dcmt.cli import main
from dcmt.commands.untrained import PENALTIES, fit_probe
from dcmt.config import GraderConfig
from dcmt.loaded import load_run
from dcmt.train import train_grader
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run, file_hash
from knee.grades import grade_set_yaml, load_grade_set

CLIP = {"image": "timm:resnet10t", "text": "small", "pretrained": False, "embed_dim": 16, "stage": 2, "stride": 8}


@pytest.fixture(scope="module")
def other_run(grader_values, tmp_path_factory) -> Path:
    """A second run on the data of ``trained_run``, of another seed."""
    values = grader_values | {"fit": grader_values["fit"] | {"steps": 2, "seed": 5}}
    config = config_from_values(GraderConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("runs") / "other", config, kind="grader")
    train_grader(config, run, resume=False)
    return run.path


@pytest.fixture
def clip_file(grader_values, tmp_path) -> Path:
    """A config file of a text head whose runs go to ``tmp_path/runs``."""
    path = tmp_path / "clip.yaml"
    values = grader_values | {"runs": str(tmp_path / "runs"), "model": {"head": "text"}, "clip": CLIP}
    path.write_text(yaml.safe_dump(values))
    return path


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


@pytest.fixture
def probe_data(monkeypatch):
    """No tower, and four training images and two of validation, these of grade 1 alone; by the metric to choose by."""
    monkeypatch.setattr(
        "dcmt.commands.untrained.embeddings_of", lambda _, images: np.zeros((len(list(images)), 2), np.float32)
    )

    def build(metric):
        return None, SimpleNamespace(
            labeled=np.arange(4),
            grades=np.array([0, 1, 2, 0, 1, 1]),
            grade_set=dataclasses.replace(load_grade_set("cartilage"), best_metric=metric),
            rows=lambda _: np.array([4, 5]),
            loader=lambda rows: [(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), row) for row in rows],
        )

    return build


def refusal(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if " changed since " not in line)
    return message


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


def test_an_image_under_two_names_is_told(trained_run, on_manifest, phantom, tmp_path, capsys):
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


def test_other_mistakes_are_told(trained_run, tmp_path, capsys):
    path = trained_run.path
    assert "given twice" in refusal(capsys, "compare", path, path)
    assert "not a run folder" in refusal(capsys, "compare", path, tmp_path)


def test_zero_shot_leaves_a_run_of_one_network(clip_file, tmp_path, phantom, capsys):
    assert main(["zeroshot", "--config", str(clip_file), "--split", "val"]) == 0
    assert "mean of grades" in capsys.readouterr().out
    run = tmp_path / "runs" / "clip-zeroshot"
    found = json.loads((run / "metrics_val.json").read_text(encoding="utf-8"))
    assert "student" not in found
    assert found["checkpoint_step"] == 0
    table = pd.read_csv(run / "local" / "predictions_val.csv")
    assert np.allclose(table[["p_0", "p_1", "p_2"]].sum(axis=1), 1, atol=1e-5)
    image = next((phantom.parent / "images").iterdir())
    out = tmp_path / "predicted"
    assert main(["predict", str(run), str(image), "--out", str(out), "--no-overlays"]) == 0
    assert "has no student" in refusal(capsys, "predict", run, image, "--out", tmp_path / "p", "--student")
    assert "of kind zeroshot" in refusal(capsys, "train", "--resume", run)
    assert main(["zeroshot", "--config", str(clip_file), "--split", "val"]) == 0
    assert (tmp_path / "runs" / "clip-zeroshot-2" / "metrics_val.json").is_file()


def test_zero_shot_needs_no_image_to_train_on(clip_file, phantom, tmp_path, capsys):
    shutil.copytree(phantom.parent, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    paths = []
    for name in ("manifest.csv", "split.csv"):
        paths.append(tmp_path / "data" / name)
        pd.read_csv(paths[-1], dtype=str, keep_default_na=False).assign(split="test").to_csv(paths[-1], index=False)
    given = ["--config", clip_file, "--data.manifest", paths[0], "--data.split", paths[1]]
    run = tmp_path / "runs" / "clip-zeroshot"
    assert main([str(argument) for argument in ("zeroshot", *given)]) == 0
    for command in ("evaluate", "verify"):
        assert main([command, str(run)]) == 0
    assert json.loads((run / "metrics_test.json").read_text())["teacher"]["cases"] == 48
    capsys.readouterr()
    assert "no training image has a grade" in refusal(capsys, "probe", *given)


def test_the_probe_is_a_run_too_and_compares_with_trained_ones(clip_file, trained_run, tmp_path, capsys):
    out = tmp_path / "probe"
    assert main(["probe", "--config", str(clip_file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith("inverse penalty") for line in printed.splitlines()) == len(PENALTIES)
    assert main(["compare", str(trained_run.path), str(out), "--no-flip"]) == 0
    assert "flip_changed" not in capsys.readouterr().out
    assert "has no student" in refusal(capsys, "compare", trained_run.path, out, "--network", "student")


def test_a_probe_beside_one_at_work_gets_a_folder_of_its_own(clip_file, tmp_path, monkeypatch):
    fit = dcmt.commands.untrained.fit_probe

    def slow(*arguments, **options):
        monkeypatch.setattr("dcmt.commands.untrained.fit_probe", fit)
        assert main(["probe", "--config", str(clip_file)]) == 0
        return fit(*arguments, **options)

    monkeypatch.setattr("dcmt.commands.untrained.fit_probe", slow)
    assert main(["probe", "--config", str(clip_file)]) == 0
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["clip-probe", "clip-probe-2"]
    assert all((tmp_path / "runs" / name / "metrics_test.json").is_file() for name in runs)


def test_what_a_probe_cannot_do_is_told_before_it_begins(clip_file, tmp_path, capsys):
    told = refusal(capsys, "probe", "--config", clip_file, "--split", "train")
    assert "or add --trained-on" in told
    assert "cannot be resumed" in refusal(capsys, "zeroshot", "--config", clip_file, "--resume", "runs/clip-zeroshot")
    assert "leads out of the folder of runs" in refusal(
        capsys, "zeroshot", "--config", clip_file, "--name", "../escaped"
    )
    assert not (tmp_path / "runs").exists()


def test_the_sanity_check_of_a_probe_shuffles_what_it_looks_with_from_its_classifier_on(clip_file, tmp_path, capsys):
    out = tmp_path / "probe"
    assert main(["probe", "--config", str(clip_file), "--out", str(out)]) == 0
    assert main(["review", "sanity", str(out), "--images", "2", "--steps", "100"]) == 0
    record = json.loads((out / "sanity.json").read_text())["randomisation"]
    assert [row["from_layer"] for row in record[1:3]] == ["classifier", "classifier"]
    assert record[-1]["share"] == 1
    assert not [row for row in record if "text_tower" in row["from_layer"]]


@pytest.mark.parametrize("metric", ["kappa", "auc"])
def test_the_penalty_is_chosen_where_validation_has_one_grade(metric, probe_data, monkeypatch, said: list[str]):
    """Kappa is not defined where all are right, AUC nowhere; all right is then the best, whatever else is 0."""
    grader, data = probe_data(metric)
    right = 1.0

    def fit(grader, embeddings, grades, *, count, inverse_penalty):
        bias = torch.tensor([0.0, 9.0, 0.0] if inverse_penalty == right else [9.0, 0.0, 0.0])
        return ProbeGrader(grader, torch.zeros(3, 2), bias)

    monkeypatch.setattr("dcmt.commands.untrained.fit_linear_probe", fit)
    probe = fit_probe(grader, data, device=torch.device("cpu"), inverse_penalty=None)
    assert probe.classifier.bias.tolist() == [0.0, 9.0, 0.0]
    assert any(f"{metric} is undefined on these 2 validation images" in line for line in said)
    right = None
    probe = fit_probe(grader, data, device=torch.device("cpu"), inverse_penalty=None)
    assert probe.classifier.bias.tolist() == [9.0, 0.0, 0.0]


def test_untrained_graders_need_a_text_head(grader_values, tmp_path, capsys):
    path = tmp_path / "linear.yaml"
    path.write_text(yaml.safe_dump(grader_values | {"runs": str(tmp_path)}))
    for command in ("zeroshot", "probe"):
        assert "model.head: text" in refusal(capsys, command, "--config", path)
    assert not (tmp_path / "linear-zeroshot").exists()


def test_the_weights_of_another_run_are_not_taken_and_that_is_told(clip_file, trained_run, tmp_path, capsys):
    for command in ("zeroshot", "probe"):
        told = refusal(capsys, command, "--config", clip_file, "--model.start", trained_run.path)
        assert "remove model.start" in told
    assert not (tmp_path / "runs").exists()


def test_help_lists_own_and_config_options(capsys):
    assert main(["probe", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--inverse-penalty" in printed
    assert "--clip.image" in printed


def test_the_penalty_must_be_above_0(clip_file, capsys):
    assert "above 0" in refusal(capsys, "probe", "--config", clip_file, "--inverse-penalty", "0")


def test_a_run_from_before_text_heads_still_loads(trained_run, tmp_path):
    run = shutil.copytree(trained_run.path, tmp_path / "old")
    values = yaml.safe_load((run / "config.yaml").read_text())
    del values["clip"], values["model"]["head"], values["loss"]["symmetry"], values["loss"]["flip_consistency"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    loaded = load_run(run, checkpoint="best", device="cpu")
    assert loaded.config == load_run(trained_run.path, checkpoint="best", device="cpu").config


def test_images_that_were_trained_on_are_graded_on_request_only(
    trained_run: RunFolder, other_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained_run.path)
    for command in (["evaluate", run], ["compare", run, str(other_run)]):
        assert main([*command, "--split", "train"]) == 2
        assert "was trained on the images of --split train" in capsys.readouterr().err
    assert main(["compare", run, str(other_run), "--split", "train", "--trained-on"]) == 0


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
