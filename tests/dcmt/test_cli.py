"""The command line as a person meets it: exit codes, one clear message, and the whole chain on a tiny phantom."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee.images.read import write_png

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Main:
    """The command line within this process: exit code, stdout, stderr."""
    from dcmt.cli import main as entry

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = entry([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


COMMANDS = ["phantom", "manifest", "check", "split", "evaluate", "predict", "attention", "verify", "compare"]


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS), ["train"], ["segment", "train"], ["segment", "predict"]]
)
def test_help(command: list[str], main: Main) -> None:
    code, out, err = main(*command, "--help")
    assert (code, err) == (0, "")
    assert "usage:" in out
    if command[:1] in ([], ["train"], ["evaluate"]):
        assert "Research use only" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["grade"], "invalid choice: 'grade'"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["attention", "nowhere", "--cases", "-3"], "'-3' is not a whole number, 0 or more"),
        (
            ["segment", "predict", "nowhere", "--out", "m", "--dilation", "-3"],
            "'-3' is not a number of pixels from 0 to 256",
        ),
        (["segment", "predict", "nowhere", "--out", "m", "--dilation", "nan"], "'nan' is not a number of pixels"),
        (["segment", "predict", "nowhere", "--out", "m", "--dilation", "wide"], "'wide' is not a number of pixels"),
        (["verify", "nowhere"], "nowhere is not a run folder"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--fit.stepz", "3"], "there is no option fit.stepz; did you mean fit.steps"),
        (["train", "--fit.steps", "x"], "option fit.steps"),
        (["train", "--labeled-fraction", "2"], "data.labeled_fraction is 2"),
        (["train", "--name", "../../elsewhere"], "leads out of the folder of runs"),
        (["train", "--data.manifest", "nowhere.csv"], "nowhere.csv"),
        (["check", "nowhere.csv"], "nowhere.csv"),
        (["split", "nowhere.csv", "--out", "a.csv"], "nowhere.csv"),
        (["phantom", "p", "--patients", "1", "--size", "4"], "patients is 1"),
        (["segment", "train", "--unet.encoder", "resnet19", "--data.manifest", "no.csv"], "no.csv"),
    ],
)
def test_a_mistake_ends_with_2_and_a_message(arguments: list[str], message: str, main: Main) -> None:
    code, _, err = main(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_run_that_could_not_begin_does_not_stand_in_the_way(main: Main, phantom: Path) -> None:
    arguments = ["train", "--name", "a", "--data.split", phantom.parent / "split.csv"]
    assert main(*arguments, "--data.manifest", "nowhere.csv")[0] == 2
    code, _, err = main(*arguments, "--data.manifest", "elsewhere.csv")
    assert code == 2
    assert "exists already" not in err
    known = [*arguments, "--data.manifest", phantom, "--data.image_size", "48"]
    for _ in range(2):
        code, _, err = main(*known, "--model.backbone", "resnet19")
        assert (code, "timm has no 'resnet19'" in err) == (2, True)


def test_a_file_where_a_folder_is_needed_is_told(main: Main, phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = main("train", "--runs", "file", "--data.manifest", phantom)
    assert code == 2
    assert "there is a file in place of a folder" in err


TRAINING = [
    *("--data.split", "split.csv", "--data.image_size", "48", "--fit.log_every", "2", "--fit.precision", "fp32"),
    *("--fit.threads", "1", "--fit.device", "cpu", "--data.labeled_per_batch", "4", "--report.bootstrap", "100"),
]
GRADER = ["--labeled-fraction", "0.6", "--data.unlabeled_per_batch", "2", "--model.backbone", "resnet10t"]
STAGE = ["--model.stage", "2", "--model.stride", "8", "--data.manifest", "data/manifest_masks.csv"]
CHAIN: list[tuple[str, list[str]]] = [
    ("phantom", ["data", "--patients", "9", "--slices", "4", "--size", "48", "--drawn-masks", "8"]),
    ("check", ["data/manifest.csv", "--grade-set", "cartilage"]),
    ("split", ["data/manifest.csv", "--grade-set", "cartilage", "--out", "split.csv"]),
    (
        "segment",
        ["train", "--data.manifest", "data/manifest.csv", *TRAINING, "--name", "unet", "--fit.steps", "4"],
    ),
    ("segment", ["predict", "runs/unet", "--out", "data/masks_unet", "--manifest-out", "data/manifest_masks.csv"]),
    ("train", [*TRAINING, *GRADER, *STAGE, "--name", "dcmt", "--fit.steps", "4"]),
    ("evaluate", ["runs/dcmt", "--device", "cpu"]),
    ("verify", ["runs/dcmt", "--device", "cpu"]),
    ("predict", ["runs/dcmt", "data/images", "--out", "predicted", "--device", "cpu", "--no-overlays"]),
    ("attention", ["runs/dcmt", "--cases", "3", "--device", "cpu"]),
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all commands ran, one after the other, within this process."""
    from dcmt.cli import main

    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, arguments in CHAIN:
            assert main([command, *arguments]) == 0, (command, arguments)
        yield folder


def test_chain_leaves_what_it_promises(chain: Path) -> None:
    run = chain / "runs" / "dcmt"
    metrics = json.loads((run / "metrics_test.json").read_text())
    assert {"student", "teacher", "teacher_minus_student", "best_iou_of_grid"} <= set(metrics)
    assert {"macro_f1", "recall", "auc", "kappa", "adjacent", "ece", "tiou"} <= set(metrics["teacher"]["metrics"])
    assert {path.name for path in (run / "figures").iterdir()} >= {"confusion_test.png", "roc_test.png"}
    table = pd.read_csv(run / "local" / "predictions_test.csv")
    assert len(table) == metrics["teacher"]["cases"]
    assert len(pd.read_csv(chain / "predicted" / "predictions.csv")) == 36
    shown = sorted(path.name for path in (run / "attention_test").iterdir())
    assert len(shown) == 4
    assert shown[-1] == "sheet.png"
    assert not [name for name in shown if "P0" in name]


def test_chain_overwrites_nothing_unasked(chain: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain)
    for number in (0, 2, 3, 4, 5, 8, 9):
        command, arguments = CHAIN[number]
        code, _, err = main(command, *arguments)
        # A training run is never replaced: the second one gets a name of its own.
        assert code == (0 if "train" in (command, *arguments) else 2), (command, arguments)
        assert "Traceback" not in err
    assert {"dcmt", "dcmt-2"} <= {path.name for path in (chain / "runs").iterdir()}


def test_overlays_made_anew_do_not_stay_beside_earlier_ones(
    chain: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain)
    folder = chain / "shown"
    command = ("attention", "runs/dcmt", "--device", "cpu", "--out", "shown")
    assert main(*command, "--cases", "4")[0] == 0
    before = {path.name for path in folder.glob("*.png")}
    (folder / "mine.png").write_bytes(b"a reader's own")
    (folder / "c0123456789.png").write_bytes(b"a case of other data")
    code, _, err = main(*command, "--cases", "2")
    assert code == 2
    assert "sheet.png: exists already" in err
    assert {path.name for path in folder.glob("*.png")} == before | {"mine.png", "c0123456789.png"}
    code, out, _ = main(*command, "--cases", "2", "--force")
    assert code == 0
    assert "earlier overlays of other cases were removed" in out
    assert len(list(folder.glob("*.png"))) == 2 + len(("sheet.png", "mine.png", "c0123456789.png"))
    assert (folder / "mine.png").read_bytes() == b"a reader's own"


def test_metrics_that_were_touched_do_not_verify(chain: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain)
    path = chain / "runs" / "dcmt" / "metrics_test.json"
    text = path.read_text()
    values = json.loads(text)
    values["teacher"]["metrics"]["macro_f1"]["value"] += 0.1
    path.write_text(json.dumps(values))
    code, out, err = main("verify", "runs/dcmt", "--no-weights")
    path.write_text(text)
    assert code == 2
    assert "teacher macro_f1 value: reported" in err
    assert "1 differ" in out
    assert main("verify", "runs/dcmt", "--no-weights")[0] == 0


def test_predictions_that_were_touched_do_not_verify(chain: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain)
    path = chain / "runs" / "dcmt" / "local" / "predictions_test.csv"
    text = path.read_text()
    table = pd.read_csv(path)
    table.loc[0, ["p_0", "p_1"]] = table.loc[0, ["p_1", "p_0"]].to_numpy()
    table.to_csv(path, index=False)
    code, _, err = main("verify", "runs/dcmt", "--device", "cpu")
    path.write_text(text)
    assert code == 2
    assert f"teacher {table['case'].iat[0]}: a probability differs" in err


def test_split_that_changed_is_not_evaluated_on(chain: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain)
    text = (chain / "split.csv").read_text()
    code = main(
        "split", "data/manifest.csv", "--grade-set", "cartilage", "--out", "split.csv", "--force", "--from-scratch"
    )[0]
    assert code == 0
    code, _, err = main("evaluate", "runs/dcmt", "--device", "cpu")
    (chain / "split.csv").write_text(text)
    assert code == 2
    assert "may have been trained on" in err


def test_as_a_process_of_its_own(dcmt_command: Run, tmp_path: Path) -> None:
    done = dcmt_command("phantom", "data", "--patients", "3", "--slices", "1", "--size", "32", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert "wrote data/manifest.csv" in done.stdout
    again = dcmt_command("phantom", "data", "--patients", "3", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "dcmt: data is not empty; give the name of a new folder, or --force to overwrite its files\n"


def test_letters_that_the_terminal_lacks_are_written_out(command_environment: dict[str, str], tmp_path: Path) -> None:
    import sys

    images = tmp_path / "images"
    images.mkdir()
    for name in ("колено_L_1.png", "колено_R_1.png"):
        write_png(images / name, np.zeros((8, 8), np.uint8))
    for encoding in ("latin-1", "ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "dcmt.cli", "manifest", str(images), "--force", "--pattern", "file"],
            env=command_environment | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        written = "колено_L_1".encode(encoding, "backslashreplace")
        assert written in done.stdout
        assert (images / "manifest.csv").exists()


def test_printing_into_any_stream_is_left_alone(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    main("train", "--help")
    assert "usage" in stream.getvalue().lower()
    monkeypatch.setattr("sys.stderr", None)
    assert main("check", "none.csv")[0] == 2


def test_importing_the_command_line_imports_no_torch(dcmt_command: Run, command_environment: dict[str, str]) -> None:
    import sys

    code = "import sys, dcmt.cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], env=command_environment, check=False).returncode == 0


def test_train_py_is_the_same_command(command_environment: dict[str, str], tmp_path: Path) -> None:
    import sys

    script = Path(__file__).parents[2] / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "--fit.stepz", "3"],
        env=command_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean fit.steps" in done.stderr
