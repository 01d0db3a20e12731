"""kill −9 inside a joint run of images, reports and tables: resumed, it ends as if undisturbed."""

from __future__ import annotations

import importlib
import random
import signal
from pathlib import Path

import pytest
import yaml

from knee.data.manifest import read_manifest
from knee.data.splits import make_split, write_split
from knee.grades import load_grade_set
from knee.phantom import write_phantom

from .conftest import Kills, Trainee, assert_same, outcome
from .test_kills import kill_at_operation, kill_in_file

pytestmark = pytest.mark.faults
KIND = "inside a joint run"


@pytest.fixture(scope="module")
def joint_trainee(tmp_path_factory: pytest.TempPathFactory) -> Trainee:
    """Trains tiny joint runs of six steps; the run "undisturbed" is finished."""
    folder: Path = tmp_path_factory.mktemp("joint")
    manifest = write_phantom(folder / "data", kind="xray", patients=12, size=32, seed=3, drawn_masks=0, reports=True)
    split = folder / "split.csv"
    write_split(split, make_split(read_manifest(manifest, load_grade_set("kl")).table, seed=0))
    data = {
        "manifest": str(manifest),
        "split": str(split),
        "grade_set": "kl",
        "image_size": 32,
        "labeled_fraction": 0.5,
    }
    values = {
        "method": "beyond_clip",
        "data": {**data, "labeled_per_batch": 2, "unlabeled_per_batch": 4, "allow_missing_grades": True},
        "model": {"backbone": "resnet10t", "stage": 2, "stride": 8, "dropout": 0.3},
        "text": {"width": 16, "layers": 1, "heads": 2, "buckets": 256, "length": 48},
        "contrast": {"embed_dim": 16},
        "joint": {"columns": "age,sex", "layers": 1, "privileged": 1.0},
        "fit": {"steps": 6, "validate_every": 2, "log_every": 2, "precision": "fp32", "device": "cpu", "threads": 1},
        "report": {"tensorboard": False, "bootstrap": 100},
    }
    path = folder / "joint.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    importlib.import_module("image_text.train")  # slow, and forks have it then
    (folder / "runs").mkdir()
    found = Trainee(folder / "runs", path)
    assert found.finish(found.train("undisturbed")) == 0, found.output()
    return found


@pytest.mark.parametrize("number", range(4))
def test_kills_of_joint_training(joint_trainee: Trainee, kills: Kills, number: int) -> None:
    draw, name = random.Random(number), f"run_{number}"
    file = kill_in_file(draw.randint(2, 9), draw.random())
    prepare = file if number % 2 else kill_at_operation(joint_trainee.run(name).path, draw.randint(15, 50))
    assert joint_trainee.finish(joint_trainee.train(name, prepare=prepare)) == -signal.SIGKILL, joint_trainee.output()
    kills.tried[KIND] += 1
    assert joint_trainee.finish(joint_trainee.train(name)) == 0, joint_trainee.output()
    assert_same(joint_trainee.run(name), outcome(joint_trainee.run("undisturbed")))
    kills.survived[KIND] += 1
