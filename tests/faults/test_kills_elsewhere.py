"""kill −9 inside ``segment train``, ``review import`` and commands with ``--force``: nothing is lost, and again works."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from dcmt.cli import main
from dcmt.commands.review.files import model_hash
from knee.engine.run import RunFolder
from knee.review.key import read_key
from knee.review.verdicts_file import Verdict, verdicts_document
from tests.hostile import copied

from .conftest import Kills, Trainee, assert_same, outcome
from .test_kills import kill_at_operation, kill_in_file

pytestmark = pytest.mark.faults
KILLS = 6
IMPORT, FORCE, SEGMENT = "inside review import", "inside a command with --force", "inside segment train"


def test_kills_of_segment_train(segmenter_trainee: Trainee, kills: Kills) -> None:
    wanted = outcome(segmenter_trainee.run("undisturbed"))
    draw = random.Random(2)
    for name in ("first", "second"):
        folder = segmenter_trainee.run(name).path
        arms = [
            kill_at_operation(folder / "checkpoints" / ".writing_", draw.randint(1, 12)),  # within the first checkpoint
            kill_in_file(draw.randint(5, 8), draw.random()),
            kill_at_operation(folder, draw.randint(20, 50)),
        ]
        for arm in arms:
            kills.tried[SEGMENT] += 1
            process = segmenter_trainee.train(name, prepare=arm)
            assert segmenter_trainee.finish(process) == -signal.SIGKILL, segmenter_trainee.output()
        assert segmenter_trainee.finish(segmenter_trainee.train(name)) == 0, segmenter_trainee.output()
        assert_same(segmenter_trainee.run(name), wanted)
        kills.survived[SEGMENT] += len(arms)


@pytest.fixture
def reviewed(trained_run: RunFolder, tmp_path: Path) -> RunFolder:
    run = RunFolder(copied(trained_run.path, tmp_path / "tiny"))
    assert main(["review", "export", str(run.path), "--cases", "4", "--format", "html", "--device", "cpu"]) == 0
    return run


def verdicts(run: RunFolder, reader: str) -> Path:
    checkpoint = run.checkpoints.best()
    assert checkpoint is not None
    known = model_hash(checkpoint)
    said = [
        Verdict(case, reader, "2025-03-01T12:00:00Z", "tiny", known, 1, 1, "agree", "")
        for case in read_key(run.local / "review_key.csv")
    ]
    path = run.path.parent / f"{reader}.json"
    path.write_text(json.dumps(verdicts_document(said, grade_set="cartilage", grades=3)))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_kills_of_review_import(reviewed: RunFolder, trainee: Trainee, kills: Kills) -> None:
    """One reader's verdicts are in the table; those of a second are all added or not at all, and again adds them."""
    first, second = verdicts(reviewed, "Ada"), verdicts(reviewed, "Ben")
    assert main(["review", "import", str(reviewed.path), str(first)]) == 0
    table = reviewed.verdicts
    before = table.read_bytes()
    arguments = ["review", "import", reviewed.path, second]
    for operation in range(1, KILLS + 1):
        kills.tried[IMPORT] += 1
        killed = trainee.start(*arguments, prepare=kill_at_operation(reviewed.local, operation))
        code = trainee.finish(killed)
        assert code == -signal.SIGKILL, f"operation {operation}: {trainee.output()}"
        assert table.read_bytes()[: len(before)] == before
        assert len(rows(table)) in (4, 8)
        assert trainee.finish(trainee.start(*arguments)) == 0, trainee.output()
        assert {(row["reviewer"], row["case"]) for row in rows(table)} == {
            (reader, row["case"]) for row in rows(table) for reader in ("Ada", "Ben")
        }
        assert len(rows(table)) == 8
        table.write_bytes(before)
        kills.survived[IMPORT] += 1


@pytest.mark.parametrize("command", ["predict", "review", "attention"])
def test_kills_of_commands_with_force(
    command: str, reviewed: RunFolder, trainee: Trainee, phantom: Path, tmp_path: Path, kills: Kills
) -> None:
    """No file is half written, and the command again ends as it did undisturbed; predict alone removes old files first."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for path in sorted((phantom.parent / "images").glob("*.png"))[:4]:
        shutil.copyfile(path, images / path.name)
    arguments: list[Any] = {
        "predict": ["predict", reviewed.path, images, "--out", out, "--device", "cpu", "--force"],
        "review": ["review", "export", reviewed.path, "--cases", "4", "--format", "html,png", "--out", out, "--force"],
        "attention": ["attention", reviewed.path, "--cases", "4", "--out", out, "--force"],
    }[command]
    assert trainee.finish(trainee.start(*arguments)) == 0, trainee.output()
    wanted = contents(out)
    key = (reviewed.local / "review_key.csv").read_bytes()
    for operation in (2, 5):
        kills.tried[FORCE] += 1
        killed = trainee.start(*arguments, prepare=kill_at_operation(out, operation))
        assert trainee.finish(killed) == -signal.SIGKILL, trainee.output()
        found = contents(out)
        assert {name: value for name, value in found.items() if name in wanted and value != wanted[name]} == {}
        assert command == "predict" or found.keys() >= wanted.keys()
        assert trainee.finish(trainee.start(*arguments)) == 0, trainee.output()
        assert {name: value for name, value in contents(out).items() if ".part" not in name} == wanted
        assert (reviewed.local / "review_key.csv").read_bytes() == key
        kills.survived[FORCE] += 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
