"""Training in two processes: the images, losses and weights of one, and a run that goes on with any number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from dcmt.cli import main
from knee.engine.run import RunFolder
from knee.engine.tracking import read_metrics
from tests.knee.nn.test_processes import free_port

STEPS = 6


@pytest.fixture
def values(grader_values: Mapping[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A network without batch statistics, and an optimizer that does not enlarge rounding."""
    sections = {name: dict(part) for name, part in grader_values.items()}
    sections["model"] |= {"backbone": "convnext_atto"}
    sections["optimizer"] = {"name": "sgd", "learning_rate": 0.01}
    sections["fit"] |= {"steps": STEPS, "log_every": 1, "validate_every": 3}
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


def test_two_processes_train_as_one_and_one_goes_on(values: dict[str, Any], tmp_path: Path) -> None:
    half = {**values, "fit": values["fit"] | {"steps": STEPS // 2}}
    code, printed = train(tmp_path, half, "--name", "two")
    assert code == 0, printed
    assert printed.count("labeled images with a mask") == 1, "only the first process prints"
    two, one = tmp_path / "runs" / "two", tmp_path / "runs" / "one"
    config = tmp_path / "config.yaml"
    assert main(["train", "--config", str(config), "--name", "one"]) == 0
    first, second = losses(one), losses(two)
    assert first.keys() == second.keys() and len({step for step, _ in first}) == STEPS // 2
    assert {name for _, name in first} >= {"loss/grade", "loss/attention", "loss/attention_consistency"}
    assert max(abs(first[key] - second[key]) for key in first) < 1e-5
    for run in (one, two):  # the second half of both in one process
        assert main(["train", "--resume", str(run), "--fit.steps", str(STEPS)]) == 0
    first, second = losses(one), losses(two)
    assert first.keys() == second.keys() and len({step for step, _ in first}) == STEPS
    assert max(abs(first[key] - second[key]) for key in first) < 1e-4
    for name in ("student", "teacher"):
        weights = [
            load_file(RunFolder(run).checkpoints.latest()[0].folder / f"{name}.safetensors") for run in (one, two)
        ]
        assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 1e-4


def test_batches_that_cannot_be_shared_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    code, printed = train(tmp_path, {**values, "data": values["data"] | {"labeled_per_batch": 5}}, "--name", "odd")
    assert code == 2
    assert "data.labeled_per_batch is 5, for all processes together; with 2 give a multiple of it" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs" / "odd").exists()
