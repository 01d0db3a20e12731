"""Work in two processes: the images, losses, weights and tables of one, and a run that goes on with any number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from dcmt.cli import main
from knee.engine.run import RunFolder
from knee.engine.tracking import read_metrics
from tests.knee.nn.test_processes import free_port, in_processes

SHARED, STEPS, LAST = 20, 23, 25
"""Steps in two processes, those until one process goes on, and those of the whole run, which two processes finish."""


@pytest.fixture
def values(grader_values: Mapping[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A network without batch statistics, and options that do not enlarge rounding: see ``docs/training.md``."""
    sections = {name: dict(part) for name, part in grader_values.items()}
    sections["model"] |= {"backbone": "convnext_atto"}
    sections["attention"] = {"sharpness": 4.0}
    sections["optimizer"] = {"name": "sgd", "learning_rate": 0.01}
    sections["fit"] |= {"steps": STEPS, "log_every": 1, "validate_every": 10}
    return {**sections, "runs": str(tmp_path / "runs")}


def train(folder: Path, values: Mapping[str, Any], *arguments: str, count: int = 2) -> tuple[int, str]:
    """The highest exit code, and all that was printed."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(dict(values)))
    given = list(arguments) if "--resume" in arguments else ["--config", str(config), *arguments]
    port = str(free_port())
    started = []
    for rank in range(count):
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        environment |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "dcmt", "train", *given]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2], **streams))
    printed = [process.communicate(timeout=240)[0] for process in started]
    return max(process.returncode for process in started), "\n".join(printed)


def losses(run: Path) -> dict[tuple[int, str], float]:
    return {(step, name): value for step, name, value in read_metrics(run / "metrics.csv") if name.startswith("loss/")}


@pytest.mark.parametrize(("backbone", "rate"), [("convnext_atto", 0.01), ("resnet10t", 0.0002)])
def test_two_processes_train_as_one_which_goes_on_and_so_do_two(
    values: dict[str, Any], backbone: str, rate: float, tmp_path: Path
) -> None:
    """A network without batch normalisation, and one whose layers use the images of both processes.

    Batch normalisation over 6 images enlarges rounding, so its learning rate is small.
    """
    values["model"] |= {"backbone": backbone}
    values["optimizer"] |= {"learning_rate": rate}
    half = {**values, "fit": values["fit"] | {"steps": SHARED}}
    code, printed = train(tmp_path, half, "--name", "two")
    assert code == 0, printed
    assert printed.count("labeled images with a mask") == 1, "only the first process prints"
    two, one = tmp_path / "runs" / "two", tmp_path / "runs" / "one"
    config = tmp_path / "config.yaml"
    assert main(["train", "--config", str(config), "--name", "one"]) == 0
    first, second = losses(one), losses(two)
    assert first.keys() == second.keys() and len({step for step, _ in first}) == SHARED
    assert {name for _, name in first} >= {"loss/grade", "loss/attention", "loss/attention_consistency"}
    assert max(abs(first[key] - second[key]) for key in first) < 1e-5
    for run in (one, two):
        assert main(["train", "--resume", str(run), "--fit.steps", str(STEPS)]) == 0
    assert main(["train", "--resume", str(one), "--fit.steps", str(LAST)]) == 0
    code, printed = train(tmp_path, values, "--resume", str(two), "--fit.steps", str(LAST))
    assert code == 0, printed
    first, second = losses(one), losses(two)
    assert first.keys() == second.keys() and len({step for step, _ in first}) == LAST
    assert max(abs(first[key] - second[key]) for key in first) < 1e-4
    for name in ("student", "teacher"):
        weights = [
            load_file(RunFolder(run).checkpoints.latest()[0].folder / f"{name}.safetensors") for run in (one, two)
        ]
        assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 1e-4


def test_two_processes_make_the_cache_of_one(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knee.data.sources._BLOCK", 5)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    made = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        codes, printed = in_processes(
            partial(main, ["cache", "--config", str(config), "--data.cache", str(folder)]), tmp_path, count=number
        )
        assert codes == [0] * number, printed
        assert printed[0].startswith("the cache holds ") and not any(printed[1:])
        made.append({path.name: path.read_bytes() for path in folder.rglob("*.npy") if path.name != "sources.npy"})
    assert len(made[0]) >= 2
    assert made[0] == made[1]
    assert main(["cache", "--resume", "runs/one"]) == 2


def test_batches_that_cannot_be_shared_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    code, printed = train(tmp_path, {**values, "data": values["data"] | {"labeled_per_batch": 5}}, "--name", "odd")
    assert code == 2
    assert "data.labeled_per_batch is 5, for all processes together; with 2 give a multiple of it" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs" / "odd").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alone_and_shared(arguments: Sequence[object], folder: Path) -> tuple[str, str]:
    """What one process prints, and what the first of two prints with ``--out two`` in place of ``--out one``."""
    given = [str(argument) for argument in arguments]
    codes, (one,) = in_processes(partial(main, given), folder, count=1)
    assert codes == [0], one
    given = [str(folder / "two") if argument == str(folder / "one") else argument for argument in given]
    codes, printed = in_processes(partial(main, given), folder)
    assert codes == [0, 0], printed
    assert printed[1] == "", "only the first process prints"
    return one, printed[0]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks for each process, the last of them uneven."""
    monkeypatch.setattr("dcmt.commands.predict._CHUNK", 5)
    monkeypatch.setattr("image_text.commands._CHUNK", 5)
    monkeypatch.setattr("knee.data.prepare.EVALUATION_BATCH", 5)
    monkeypatch.setattr("knee.data.sources._BLOCK", 5)


@pytest.mark.usefixtures("small_chunks")
def test_predict_writes_the_same_bytes(trained_run: RunFolder, phantom: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(phantom.parent / "images", images)
    (images / "broken.png").write_bytes(b"no picture")
    one, two = alone_and_shared(["predict", trained_run.path, images, "--out", tmp_path / "one"], tmp_path)
    assert files_of(tmp_path / "one").keys() > {"predictions.csv", "rejected.csv"}
    found = {name: files_of(tmp_path / name) for name in ("one", "two")}
    assert len(found["one"]) > 20, "with overlays"
    drawn = "overlays/.drawn.txt"
    assert sorted(found["one"].pop(drawn).splitlines()) == sorted(found["two"].pop(drawn).splitlines())
    assert found["one"] == found["two"]
    assert one.replace(str(tmp_path / "one"), str(tmp_path / "two")) == two


@pytest.mark.usefixtures("small_chunks")
def test_evaluate_writes_the_same_bytes(
    trained_run: RunFolder, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reference and a cache of images that are made by both processes."""
    texts, tables = [], []
    for number in (1, 2):
        run = tmp_path / str(number) / "run"
        shutil.copytree(trained_run.path, run)
        data = tmp_path / str(number) / "data"
        shutil.copytree(phantom.parent, data, ignore=shutil.ignore_patterns("cache"))
        private = run / "local" / "paths.yaml"
        values = yaml.safe_load(private.read_text())
        paths = {"data.manifest": str(data / "manifest.csv"), "data.split": str(data / "split.csv")}
        private.write_text(yaml.safe_dump(values | paths))
        for path in (run / "checkpoints").rglob("reference.*"):
            path.unlink()
        arguments = ["evaluate", str(run), "--split", "train", "--trained-on"]
        codes, printed = in_processes(partial(main, arguments), tmp_path, count=number)
        assert codes == [0] * number, printed
        assert printed[1:] in ([], [""])
        texts.append(printed[0].replace(str(tmp_path / str(number)), ""))
        tables.append(
            {
                path.relative_to(run).as_posix(): path.read_bytes()
                for pattern in ("metrics_*.json", "local/predictions_*.csv", "checkpoints/*/reference.*")
                for path in run.glob(pattern)
            }
            | {path.name: path.read_bytes() for path in (data / "cache").rglob("*.npy") if path.name != "sources.npy"}
        )
    assert texts[0] == texts[1]
    assert len(tables[0]) >= 9
    assert tables[0] == tables[1]


@pytest.mark.usefixtures("small_chunks")
def test_segment_predict_writes_the_same_bytes(trained_segmenter: RunFolder, tmp_path: Path) -> None:
    options = ["segment", "predict", trained_segmenter.path, "--rows", "all", "--out", tmp_path / "one"]
    manifests = []
    for number in (1, 2):
        out, manifest = tmp_path / str(number) / "masks", tmp_path / str(number) / "masks.csv"
        out.parent.mkdir()
        given = [str(option) for option in [*options[:-1], out, "--manifest-out", manifest]]
        codes, printed = in_processes(partial(main, given), tmp_path, count=number)
        assert codes == [0] * number, printed
        manifests.append((manifest.read_bytes(), files_of(out)))
    assert len(manifests[0][1]) > 10
    assert manifests[0] == manifests[1]


def test_commands_for_one_process_say_so(phantom: Path, tmp_path: Path) -> None:
    codes, printed = in_processes(partial(main, ["check", str(phantom)]), tmp_path)
    assert codes == [2, 2]
    assert printed == ["dcmt: dcmt check works in one process only; start it without torchrun\n"] * 2
