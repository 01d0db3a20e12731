"""A run folder to damage, and what opening it may do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dcmt.cli import main
from dcmt.trained.loaded import load_run
from knee.engine.run import RunFolder
from knee.errors import UserError
from tests.hostile import copied, listing

Open = Callable[[Path], Any]


@pytest.fixture(scope="session")
def evaluated(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, evaluated and exported for review; not to be changed."""
    run = copied(trained_run.path, tmp_path_factory.mktemp("evaluated") / "tiny")
    assert main(["evaluate", str(run), "--no-flip"]) == 0
    assert main(["review", "export", str(run), "--split", "val", "--cases", "2", "--format", "html"]) == 0
    return run


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    return copied(evaluated, tmp_path / "tiny")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once a module was imported that only a run folder names."""
    marker = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "canary_of_a_run.py").write_text(f"open({str(marker)!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "canary_of_a_run", raising=False)
    return marker


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that opens a run may look for a hub."""
    asked: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: asked.append(arguments))
    yield
    assert asked == []


def weights(run: RunFolder) -> dict[str, Tensor]:
    """The tensors of both networks in the last checkpoint, by network and name."""
    found, damaged = run.checkpoints.latest()
    assert found is not None
    assert damaged == []
    return {f"{name}.{key}": value for name in ("student", "teacher") for key, value in found.tensors(name).items()}


def load_best(run: Path) -> object:
    return load_run(run, checkpoint="best", device="cpu")


def load_last(run: Path) -> object:
    return load_run(run, checkpoint="last", device="cpu").precision


def refused_or_harmless(opening: Callable[[], object], run: Path, *outside: Path) -> str:
    """The refusal, or nothing where the folder could be read; nothing outside the folder may have been written."""
    before = listing(*outside)
    try:
        opening()
        message = ""
    except UserError as error:
        message = str(error)
    assert listing(*outside) == before
    assert len(message) < 3000
    return message
