"""Every field of every document in a run folder, set to each hostile value in turn: refused in a sentence, or harmless."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcmt.cli import main
from dcmt.commands.verify import verify_command
from dcmt.trained.loaded import load_data, load_run
from knee.engine.run import RunFolder
from knee.errors import UserError
from tests.hostile import IN_JSON, IN_YAML, copied, fields, listing, spoil

Figures = dict[str, str]
MOST_SECONDS = 10.0
MANY, MOST_VALUES = 20, 1_800
"""Of a document with more than ``MANY`` fields, each gets every third value or fewer, the next field the ones after."""


@pytest.fixture(scope="module")
def evaluated(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, evaluated; its documents are put back after each change."""
    run = copied(trained_run.path, tmp_path_factory.mktemp("evaluated") / "tiny")
    assert main(["evaluate", str(run), "--no-flip"]) == 0
    return run


def load(run: Path) -> None:
    loaded = load_run(run, checkpoint="last", device="cpu")
    assert loaded.precision is None


def load_last(run: Path) -> None:
    """The last checkpoint and no other; for a damaged one ``load`` takes the one before."""
    assert load_run(run, checkpoint=6, device="cpu").precision is None


def load_with_data(run: Path) -> None:
    load_data(load_run(run, checkpoint="best", device="cpu"))


def verify(run: Path) -> None:
    options = {"run": run, "split": "test", "no_weights": True, "device": "cpu", "external_model": False}
    verify_command(type("Options", (), options))  # type: ignore[arg-type]


DOCUMENTS: dict[str, tuple[dict[str, str], Callable[[Path], None]]] = {
    "config.yaml": (IN_YAML, load),
    "local/paths.yaml": (IN_YAML, load_with_data),
    "grade_set.yaml": (IN_YAML, load),
    "checkpoints/best.json": (IN_JSON, load_with_data),
    "state.json": (IN_JSON, load_last),
    "metrics_test.json": (IN_JSON, verify),
    "reference.json": (IN_JSON, load_with_data),
}


def outcome(opening: Callable[[Path], None], run: Path) -> str:
    """``refused``, ``read``, or what else came of it."""
    started = time.process_time()
    try:
        opening(run)
        found = "read"
    except UserError as error:
        found = "refused" if len(str(error)) < 20_000 else f"a message of {len(str(error))} letters"
    except Exception as error:  # a traceback is what is looked for
        found = f"{type(error).__name__}: {str(error)[:200]}"
    took = time.process_time() - started
    return found if took < MOST_SECONDS else f"{took:.0f} s"


@pytest.mark.faults
@pytest.mark.parametrize("document", list(DOCUMENTS))
def test_every_field(
    document: str,
    evaluated: Path,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "canary_of_a_run.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    raws, opening = DOCUMENTS[document]
    path = evaluated / document
    if document == "reference.json":
        path = next(evaluated.glob("checkpoints/step_*/reference.json"))
    if document == "state.json":
        path = max(evaluated.glob("checkpoints/step_*/state.json"))
    config = evaluated / "config.yaml"
    kept, kept_config = path.read_bytes(), config.read_bytes()
    if document == "grade_set.yaml":
        spoil(config, ("data", "grade_set"), '"(in local/paths.yaml)"')
    values: Any = json.loads(kept) if path.suffix == ".json" else yaml.safe_load(kept)
    before, found = listing(phantom.parent), {}
    places = fields(values)
    every = max(3 if len(places) > MANY else 1, -(-len(places) * len(raws) // MOST_VALUES))
    for number, place in enumerate(places):
        for name, raw in list(raws.items())[number % every :: every]:
            path.unlink()
            path.write_bytes(kept)
            spoil(path, place, raw)
            found[f"{'.'.join(map(str, place))}: {name}"] = outcome(opening, evaluated)
    path.write_bytes(kept)
    config.write_bytes(kept_config)
    bad = {case: came for case, came in found.items() if came not in ("refused", "read")}
    refused = sum(came == "refused" for came in found.values())
    figures[f"hostile values of {document} handled"] = f"{len(found) - len(bad)} of {len(found)}, {refused} refused"
    with capsys.disabled():
        sys.stdout.write(f"\n{document}: {len(found) - len(bad)} of {len(found)} handled, {refused} refused\n")
    assert not bad, "\n".join(f"{case}: {came}" for case, came in bad.items())
    assert listing(phantom.parent) == before
    assert not (tmp_path / "imported").exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    "column", ["case", "image", "patient", "grade", "predicted", "p_0", "iou", "empty", "student_p_0"]
)
def test_every_column_of_the_predictions(column: str, evaluated: Path) -> None:
    path = evaluated / "local" / "predictions_test.csv"
    kept = path.read_text(encoding="utf-8")
    header, first, rest = kept.split("\n", 2)
    number = header.split(",").index(column)
    for value in ("inf", "1e400", "nan", "9" * 5_000, "", "x", "-1", "2024-01-01", "\0", "a" * 5_000_000, '"'):
        cells = first.split(",")
        cells[number] = value
        path.write_text("\n".join([header, ",".join(cells), rest]), encoding="utf-8")
        came = outcome(verify, evaluated)
        path.write_text(kept, encoding="utf-8")
        assert came in ("refused", "read"), f"{value[:20]}: {came}"
