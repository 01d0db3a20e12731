"""A second run to compare with, and the message of a command that refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import train_grader
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, create_run


@pytest.fixture(scope="session")
def other_run(grader_values, tmp_path_factory) -> Path:
    """A second run on the data of ``trained_run``, of another seed; not to be changed."""
    values = grader_values | {"fit": grader_values["fit"] | {"steps": 2, "seed": 5}}
    config = config_from_values(GraderConfig, values, where="test")
    run = create_run(tmp_path_factory.mktemp("runs") / "other", config, kind="grader")
    train_grader(config, run, resume=False)
    return run.path


def refusal(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if " changed since " not in line)
    return message


def manifest_to_touch(run: RunFolder, phantom: Path, folder: Path) -> Path:
    """The run's manifest from now on: that of a copy of its data."""
    shutil.copytree(phantom.parent, folder / "data", ignore=shutil.ignore_patterns("cache"))
    path = folder / "data" / "manifest.csv"
    paths = yaml.safe_load(run.private.read_text())
    run.private.write_text(yaml.safe_dump(paths | {"data.manifest": str(path)}))
    return path
