"""``dcmt verify``: whatever was touched after an evaluation is found, by the predictions or by the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dcmt.cli import main
from dcmt.commands.verify import _stored_predictions
from knee.engine.run import RunFolder
from knee.grades import load_grade_set

from .conftest import manifest_to_touch

Verify = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def evaluated(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(Path(shutil.copytree(trained_run.path, tmp_path_factory.mktemp("verified") / "run")))
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    return run


@pytest.fixture
def run(evaluated: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy to touch."""
    return RunFolder(Path(shutil.copytree(evaluated.path, tmp_path / "run")))


@pytest.fixture
def verify(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Exit code and all that was printed."""

    def call(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["verify", str(run.path), "--device", "cpu", *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def touch_metrics(run: RunFolder, *names: Any, value: Any) -> None:
    path = run.metrics("test")
    values = json.loads(path.read_text())
    place = values
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    path.write_text(json.dumps(values))


def touch_table(run: RunFolder, change: Callable[[pd.DataFrame], None]) -> None:
    table = pd.read_csv(run.predictions("test"))
    change(table)
    table.to_csv(run.predictions("test"), index=False)


def test_what_was_not_touched_holds(verify: Verify) -> None:
    code, printed = verify()
    assert code == 0
    assert "12 images graded again with the weights of step" in printed
    assert printed.count("all equal") == 2


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize(
    ("metric", "part"), [("macro_f1", "value"), ("tiou", "value"), ("kappa", "low"), ("ece", "high")]
)
def test_metric_that_was_touched_is_named(network: str, metric: str, part: str, run: RunFolder, verify: Verify) -> None:
    touch_metrics(run, network, "metrics", metric, part, value=0.987654)
    code, printed = verify("--no-weights")
    assert code == 2
    assert f"{network} {metric} {part}: reported 0.987654" in printed


def test_difference_that_was_touched_is_named(run: RunFolder, verify: Verify) -> None:
    touch_metrics(run, "teacher_minus_student", "macro_f1", "value", value=0.5)
    code, printed = verify("--no-weights")
    assert code == 2
    assert "teacher_minus_student macro_f1 value: reported 0.5" in printed


@pytest.mark.parametrize(
    ("names", "value", "told"),
    [
        (("best_iou_of_grid",), 0.999, "best_iou_of_grid: reported 0.999"),
        (("best_iou_of_grid",), "0.5", "best_iou_of_grid: reported '0.5'"),
        (("best_iou_of_grid",), None, "best_iou_of_grid: reported None"),
        (("split",), "val", "split: reported 'val', but it is test"),
        (("trained_on",), True, "trained_on: reported True"),
        (("teacher", "cases"), 99, "teacher cases: reported 99"),
        (("student", "graded_patients"), 99, "student graded_patients: reported 99"),
        (("teacher", "grades"), ["a", "b", "c"], "teacher grades: reported"),
        (("teacher", "metrics", "kappa"), None, "teacher kappa: reported None"),
        (("teacher_minus_student", "tiou"), None, "teacher_minus_student tiou: reported None"),
        (("teacher", "metrics", "kappa", "value"), "0.9", "teacher kappa value: reported '0.9'"),
        (("teacher", "metrics", "better"), {"value": 1.0}, "teacher better: reported {'value': 1.0}"),
    ],
)
def test_whatever_else_was_touched_is_named(
    names: tuple[str, ...], value: Any, told: str, run: RunFolder, verify: Verify
) -> None:
    touch_metrics(run, *names, value=value)
    code, printed = verify()
    assert code == 2
    assert told in printed


@pytest.mark.parametrize(
    ("names", "value"),
    [(("student",), {}), (("teacher", "interval"), None), (("teacher", "interval", "samples"), 0), (("teacher",), [])],
)
def test_metrics_of_another_form_are_refused(
    names: tuple[str, ...], value: Any, run: RunFolder, verify: Verify
) -> None:
    touch_metrics(run, *names, value=value)
    code, printed = verify("--no-weights")
    assert code == 2
    assert "is not a valid metrics file" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("grade", 7),
        ("grade", 2.5),
        ("p_0", "much"),
        ("p_0", 0.99999),
        ("student_p_1", float("nan")),
        ("predicted", 9),
        ("patient", None),
        ("entropy", None),
        ("student_empty", None),
    ],
)
def test_predictions_of_another_form_are_refused(column: str, value: Any, run: RunFolder, verify: Verify) -> None:
    def change(table: pd.DataFrame) -> None:
        if value is None:
            table.drop(columns=column, inplace=True)
        else:
            table[column] = table[column].astype(object)
            table.loc[0, column] = value

    touch_table(run, change)
    code, printed = verify("--no-weights")
    assert code == 2
    assert "run dcmt evaluate again" in printed
    assert "Traceback" not in printed


def test_patients_are_those_of_the_evaluation(run: RunFolder, phantom: Path, verify: Verify, tmp_path: Path) -> None:
    """A patient who was found to be two, before the run was evaluated again."""
    table = pd.read_csv(phantom, dtype=str, keep_default_na=False)
    table.loc[table.index[table["split"] == "test"][:2], "patient"] = "found"
    (tmp_path / "data").mkdir()
    for name in ("images", "masks", "cache"):
        (tmp_path / "data" / name).symlink_to(phantom.parent / name)
    table.to_csv(tmp_path / "data" / "manifest.csv", index=False)
    private = yaml.safe_load(run.private.read_text())
    run.private.write_text(yaml.safe_dump(private | {"data.manifest": str(tmp_path / "data" / "manifest.csv")}))
    code, printed = verify()
    assert code == 2
    assert "the manifest found" in printed
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    assert verify()[0] == 0


def test_confusion_that_was_touched_is_named(run: RunFolder, verify: Verify) -> None:
    touch_metrics(run, "teacher", "confusion", 0, value=[9, 9, 9])
    code, printed = verify("--no-weights")
    assert code == 2
    assert "teacher confusion: reported [[9, 9, 9]" in printed


def test_grades_that_were_made_to_fit_are_told_from_the_manifests(run: RunFolder, verify: Verify) -> None:
    touch_table(run, lambda table: table.update({"grade": table["predicted"]}))
    code, printed = verify()
    assert code == 2
    assert "the stored predictions hold grade" in printed


def test_overlaps_that_were_touched_are_told_by_the_weights(run: RunFolder, verify: Verify) -> None:
    touch_table(run, lambda table: table.update({"iou": table["iou"] + 0.2}))
    code, printed = verify()
    assert code == 2
    assert "teacher: the mean IoU of attention and masks is" in printed


def test_probabilities_that_were_touched_are_told_by_the_weights(run: RunFolder, verify: Verify) -> None:
    touch_table(run, lambda table: table.update({"p_0": table["p_1"], "p_1": table["p_0"]}))
    code, printed = verify()
    assert code == 2
    assert "a probability differs by" in printed


def test_other_weights_are_told(run: RunFolder, verify: Verify) -> None:
    """Whole, with checksums that fit, but not those that were evaluated."""
    import hashlib

    for folder in run.checkpoints.folder.glob("step_*"):
        shutil.copyfile(folder / "student.safetensors", folder / "teacher.safetensors")
        state = json.loads((folder / "state.json").read_text())
        content = (folder / "teacher.safetensors").read_bytes()
        state["sha256"]["teacher.safetensors"] = hashlib.sha256(content).hexdigest()
        (folder / "state.json").write_text(json.dumps(state))
    code, printed = verify()
    assert code == 2
    assert "teacher c" in printed
    assert "student c" not in printed


def test_files_named_by_numbers_are_read_as_they_are_written(run: RunFolder) -> None:
    touch_table(run, lambda table: table.update({"image": pd.Series(["00000001"] * len(table))}))
    assert _stored_predictions(run, "test", [], load_grade_set("cartilage"))["image"].iat[0] == "00000001"


def test_predictions_of_images_that_are_not_of_the_split_are_refused(run: RunFolder, verify: Verify) -> None:
    """Predictions on training images in place of those on test images."""
    split = pd.read_csv(run.local / "split.csv")
    train = split["image"][split["split"] == "train"].tolist()
    touch_table(run, lambda table: table.update({"image": pd.Series(train[: len(table)])}))
    code, printed = verify()
    assert code == 2
    assert "is not one of them" in printed
    touch_table(run, lambda table: table.drop(index=0, inplace=True))
    assert verify()[0] == 2


def test_not_evaluated_yet_is_told(run: RunFolder, verify: Verify) -> None:
    run.metrics("test").unlink()
    code, printed = verify()
    assert code == 2
    assert "evaluate first: dcmt evaluate" in printed


def test_last_checkpoint_that_is_damaged_is_told(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """``--checkpoint last`` then means the one before, and numbers of another step than asked for are never silent."""
    before, newest = sorted(run.checkpoints.folder.glob("step_*"))
    (newest / "student.safetensors").write_bytes(b"cut")
    assert main(["evaluate", str(run.path), "--device", "cpu", "--checkpoint", "last"]) == 0
    assert f"warning: {newest}" in (told := capsys.readouterr().err)
    assert "using the checkpoint before it" in told
    assert json.loads(run.metrics("test").read_text())["checkpoint_step"] == int(before.name.removeprefix("step_"))


def test_precision_that_is_none_is_refused(run: RunFolder, verify: Verify) -> None:
    for path in run.checkpoints.folder.glob("step_*/state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "int4"}))
    code, told = verify()
    assert code == 2
    assert "names the precision 'int4', not fp32, bf16 or fp16" in told


def test_flip_ttas_are_evaluated_and_verified_as_such(run: RunFolder, verify: Verify) -> None:
    alone = json.loads(run.metrics("test").read_text())
    assert alone["flip_tta"] is False
    assert main(["evaluate", str(run.path), "--device", "cpu", "--flip-tta"]) == 0
    pair = json.loads(run.metrics("test").read_text())
    assert pair["flip_tta"] is True
    assert "flip_changed" in alone["teacher"]["metrics"]
    assert "flip_changed" not in pair["teacher"]["metrics"]
    assert pair["teacher"]["metrics"]["entropy"] != alone["teacher"]["metrics"]["entropy"]
    assert verify()[0] == 0
    touch_metrics(run, "flip_tta", value=False)
    code, told = verify()
    assert code == 2
    assert "a probability differs" in told


def test_predictions_corrected_for_the_prior_are_evaluated_and_verified_as_such(run: RunFolder, verify: Verify) -> None:
    before = pd.read_csv(run.predictions("test"))
    assert main(["evaluate", str(run.path), "--device", "cpu", "--prior-correction"]) == 0
    assert json.loads(run.metrics("test").read_text())["prior_corrected"] is True
    after = pd.read_csv(run.predictions("test"))
    odds = [np.log(table["p_1"] / table["p_0"]) for table in (before, after)]
    shift = odds[1] - odds[0]
    assert shift.std() < 1e-3  # the same factor for every image
    assert abs(shift.mean()) > 1e-2
    assert verify()[0] == 0
    touch_metrics(run, "prior_corrected", value=False)
    assert verify()[0] == 2


def test_a_manifest_that_changed_is_told_and_what_it_leaves_out_is_counted(
    run: RunFolder, verify: Verify, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = manifest_to_touch(run, phantom, tmp_path)
    metrics = {}
    for dropped in (0, 2):
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
        table = table.drop(index=table.index[table["split"] == "test"][:dropped])
        table.to_csv(manifest, index=False, lineterminator="\n")
        capsys.readouterr()
        assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
        printed = capsys.readouterr()
        metrics[dropped] = json.loads(run.metrics("test").read_text())
        assert metrics[dropped]["left_out"] == dropped
        assert metrics[dropped]["manifest_changed"] is bool(dropped)
        assert ("manifest.csv changed since" in printed.err) is bool(dropped)
        assert ("2 test images of" in printed.out) is bool(dropped)
        assert verify()[0] == 0
    assert metrics[2]["teacher"]["cases"] == metrics[0]["teacher"]["cases"] - 2
    touch_metrics(run, "left_out", value=0)
    code, told = verify()
    assert code == 2
    assert "left_out: reported 0, but by manifest and split it is 2" in told


def test_masks_that_a_segmenter_wrote_are_counted(
    run: RunFolder, verify: Verify, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(run.metrics("test").read_text())["masks_by_segmenter"] == 0
    path = manifest_to_touch(run, phantom, tmp_path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    test = table.index[(table["split"] == "test") & (table["mask"] != "")]
    table["mask_source"] = ""
    table.loc[test[:3], "mask_source"] = "segmenter"
    table.to_csv(path, index=False)
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    assert "3 of the masks were predicted by a segmenter" in capsys.readouterr().out
    assert json.loads(run.metrics("test").read_text())["masks_by_segmenter"] == 3
    assert verify()[0] == 0
    touch_metrics(run, "masks_by_segmenter", value=0)
    assert "masks_by_segmenter: reported 0, but by manifest and split it is 3" in verify()[1]


def test_metrics_of_an_earlier_checkpoint_are_verified_by_it(run: RunFolder, verify: Verify) -> None:
    assert main(["evaluate", str(run.path), "--device", "cpu", "--checkpoint", "last"]) == 0
    best = run.checkpoints.best()
    assert best is not None
    step = json.loads(run.metrics("test").read_text())["checkpoint_step"]
    run.checkpoints.mark_best(3, "val_teacher/macro_f1", 1.0)
    assert main(["train", "--resume", str(run.path), "--fit.steps", "7"]) == 0
    assert run.checkpoints.of_step(step) is not None
    code, told = verify()
    assert code == 0, told
    assert f"with the weights of step {step}" in told
