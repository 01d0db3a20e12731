"""``dcmt verify``: whatever was touched after an evaluation is found, by the predictions or by the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dcmt.cli import main
from dcmt.run import RunFolder
from dcmt.verify import _stored_predictions

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
    assert "12 images graded again by the weights of step" in printed
    assert printed.count("all the same") == 2


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
    assert _stored_predictions(run, "test")["image"].iat[0] == "00000001"


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
    assert "taking the checkpoint before it" in told
    assert json.loads(run.metrics("test").read_text())["checkpoint_step"] == int(before.name.removeprefix("step_"))


def test_precision_that_is_none_is_refused(run: RunFolder, verify: Verify) -> None:
    for path in run.checkpoints.folder.glob("step_*/state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "int4"}))
    code, told = verify()
    assert code == 2
    assert "names the precision 'int4', not fp32, bf16 or fp16" in told
