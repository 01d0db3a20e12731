"""A run folder from a stranger is data: whatever its fields hold, opening it is a refusal in a sentence, or harmless."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dcmt.cli import main
from dcmt.loaded import load_data, load_run
from knee.engine.launch import new_or_resumed
from knee.engine.run import RunFolder, open_run
from knee.errors import UserError
from tests.hostile import IN_JSON, IN_YAML, copied, listing, spoil, templates

Open = Callable[[Path], Any]


@pytest.fixture(scope="module")
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


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that opens a run may look for a hub."""
    asked: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: asked.append(arguments))
    yield
    assert asked == []


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


CONFIG = [
    (("fit", "steps"), "infinite"),
    (("fit", "steps"), "huge"),
    (("fit", "steps"), "a date"),
    (("fit", "steps"), "deep"),
    (("fit", "steps"), "long"),
    (("fit", "device"), "a date"),
    (("fit", "device"), "a list"),
    (("fit", "seed"), "negative"),
    (("fit",), "a list"),
    (("data",), "a class"),
    (("clip",), "a class"),
    (("data",), "a text"),
    (("config",), "a text"),
    (("kind",), "a list"),
    (("kind",), "a date"),
    (("name",), "a mapping"),
    (("data", "manifest"), "null"),
    (("data", "image_size"), "infinite"),
    (("data", "image_size"), "true"),
    (("data", "percentiles"), "a list"),
    (("data", "grade_set"), "NUL"),
    (("model", "backbone"), "a model of the hub"),
    (("model", "backbone"), "a model of a folder"),
    (("model", "backbone"), "null"),
    (("model", "stage"), "huge"),
    (("teacher", "decay"), "infinite"),
    (("attention", "sharpness"), "not a number"),
    (("views", "noise"), "not a number"),
    (("report", "bootstrap"), "negative"),
    (("loss", "ramp"), "a text"),
]
STATE = [
    (("step",), "infinite"),
    (("step",), "beyond"),
    (("step",), "a text"),
    (("step",), "true"),
    (("step",), "endless"),
    (("sha256",), "null"),
    (("sha256",), "a mapping"),
    (("sha256", "teacher.safetensors"), "a text"),
    (("sha256", "teacher.safetensors"), "null"),
    (("precision",), "a list"),
    (("versions",), "deep"),
    (("versions",), "deeper"),
    (("prompts",), "long"),
]
BEST = [(("step",), name) for name in ("infinite", "not a number", "huge", "negative", "deep", "null", "long")]
METRICS = [
    (("checkpoint_step",), "huge"),
    (("checkpoint_step",), "true"),
    (("teacher", "interval", "samples"), "huge"),
    (("teacher", "interval", "samples"), "infinite"),
    (("teacher", "interval", "seed"), "negative"),
    (("teacher",), "null"),
    (("student", "metrics"), "a list"),
    (("teacher", "metrics", "kappa", "value"), "beyond"),
    (("best_iou_of_grid",), "deep"),
    (("teacher", "confusion"), "long"),
]
GRADES = [
    (("name",), "a date"),
    (("name",), "long"),
    (("grades",), "a text"),
    (("grades", 0), "deep"),
    (("grades", 0, "description"), "infinite"),
    (("best_metric",), "a list"),
]


@pytest.mark.parametrize(("place", "name"), CONFIG)
def test_config(place: tuple[Any, ...], name: str, run: Path, canary: Path, phantom: Path) -> None:
    spoil(run / "config.yaml", place, IN_YAML[name])
    assert refused_or_harmless(lambda: load_best(run), run, phantom.parent, canary.parent / "modules")
    assert not canary.exists()


@pytest.mark.parametrize(("place", "name"), STATE)
def test_state(place: tuple[Any, ...], name: str, run: Path, phantom: Path) -> None:
    for state in run.glob("checkpoints/step_*/state.json"):
        spoil(state, place, IN_JSON[name])
    assert refused_or_harmless(lambda: load_last(run), run, phantom.parent)


@pytest.mark.parametrize(("place", "name"), BEST)
def test_best(place: tuple[Any, ...], name: str, run: Path) -> None:
    spoil(run / "checkpoints" / "best.json", place, IN_JSON[name])
    assert refused_or_harmless(lambda: load_best(run), run)


@pytest.mark.parametrize(("place", "name"), GRADES)
def test_grade_set(place: tuple[Any, ...], name: str, run: Path) -> None:
    # A run of a grade set of its own reads its own copy.
    spoil(run / "config.yaml", ("data", "grade_set"), '"(in local/paths.yaml)"')
    spoil(run / "grade_set.yaml", place, IN_YAML[name])
    assert refused_or_harmless(lambda: load_best(run), run)


@pytest.mark.parametrize(("place", "name"), METRICS)
def test_metrics(
    place: tuple[Any, ...], name: str, run: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run / "metrics_test.json", place, IN_JSON[name])
    before = listing(phantom.parent)
    assert main(["verify", str(run), "--no-weights"]) == 2
    assert len(capsys.readouterr().err) < 3000
    assert listing(phantom.parent) == before


@pytest.mark.parametrize("name", list(templates()))
def test_template(name: str, run: Path) -> None:
    template = RunFolder(run).template_path
    template.unlink(missing_ok=True)
    templates()[name](template)
    assert "is not the mean of the training images" in refused_or_harmless(RunFolder(run).template, run)


@pytest.mark.parametrize("name", ["data.manifest", "data.split"])
@pytest.mark.parametrize("value", ["null", "a list", "a date", "a text", "NUL", "long", "deep"])
def test_paths(name: str, value: str, run: Path, phantom: Path) -> None:
    spoil(run / "local" / "paths.yaml", (name,), IN_YAML[value])
    assert refused_or_harmless(lambda: load_data(load_run(run, checkpoint="best", device="cpu")), run, phantom.parent)


def test_a_path_to_a_pipe_is_refused_and_not_waited_for(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    spoil(run / "local" / "paths.yaml", ("data.manifest",), f'"{tmp_path / "pipe"}"')
    with pytest.raises(UserError, match="which is not a readable file"):
        load_data(load_run(run, checkpoint="best", device="cpu"))


@pytest.mark.parametrize("field", ["student_grade", "case", "split", "image"])
@pytest.mark.parametrize(
    "value", ["9" * 5_000, "a" * 5_000_000, "inf", '"', "\0", "²"], ids=lambda value: repr(value)[:9]
)
def test_key(field: str, value: str, run: Path, phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    key = run / "local" / "review_key.csv"
    table = pd.read_csv(key, dtype=str)
    table.loc[0, field] = "@@"
    key.write_text(table.to_csv(index=False).replace("@@", value), encoding="utf-8")
    verdicts = run.parent / "verdicts.json"
    verdicts.write_text(json.dumps({"schema": "knee-review-verdicts/1", "verdicts": []}))
    before = listing(phantom.parent)
    assert main(["review", "import", str(run), str(verdicts)]) == 2
    assert len(capsys.readouterr().err) < 8000
    assert listing(phantom.parent) == before


@pytest.mark.parametrize("name", [name for name in IN_JSON if name != "a text"])
def test_verdicts(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "case": "c1",
        "blind_grade": 1,
        "final_grade": 1,
        "verdict": "agree",
        "comment": "",
        "time": "2025-03-01T12:00Z",
    }
    head = {"run": "tiny", "model_hash": "x", "grades": 3, "reviewer": "R1", "verdicts": [entry]}
    for number, place in enumerate([*((one,) for one in head), *(("verdicts", 0, one) for one in entry)]):
        path = run.parent / f"verdicts{number}.json"
        path.write_text(json.dumps({"schema": "knee-review-verdicts/1", **head}))
        spoil(path, place, IN_JSON[name])
        assert main(["review", "import", str(run), str(path)]) == 2
        assert len(capsys.readouterr().err) < 3000
    assert not (run / "local" / "verdicts.csv").exists()


# Links


@pytest.mark.parametrize(
    "place",
    [
        "config.yaml",
        "checkpoints",
        "metrics_test.json",
        "local/paths.yaml",
        "local",
        "figures/confusion_test.png",
        "review/new",
    ],
)
def test_a_link_in_a_run_is_refused_and_what_it_leads_to_stays(place: str, run: Path, tmp_path: Path) -> None:
    path, elsewhere = run / place, tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    before = listing(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()
    for opening in (lambda: open_run(run), lambda: load_best(run), lambda: resume(run)):
        with pytest.raises(UserError, match=r"is a link, which is not followed .* cp -rL "):
            opening()
    assert before == (listing(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes())


def resume(run: Path) -> object:
    from dcmt.config import GraderConfig

    return new_or_resumed(GraderConfig, ["--resume", str(run)], kind="grader", program="train.py")


def test_a_run_folder_may_itself_be_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    assert open_run(tmp_path / "link")[1]["kind"] == "grader"


def test_a_pipe_in_a_run_is_refused(run: Path) -> None:
    state = next(run.glob("checkpoints/step_*/state.json"))
    state.unlink()
    os.mkfifo(state)
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        load_best(run)


def test_what_a_link_leads_to_is_not_sent(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "private.dcm").write_bytes(b"x")
    (run / "review" / "a.dcm").symlink_to(tmp_path / "private.dcm")
    assert main(["review", "send", str(run), "--host", "localhost", "--port", "1"]) == 2
    assert "is a link" in capsys.readouterr().err


# Models


def with_clip(run: Path, **clip: Any) -> None:
    raw = json.dumps({"image": "timm:resnet10t", "text": "small", "pretrained": False, **clip})
    spoil(run / "config.yaml", ("model",), '{"head": "text"}')
    spoil(run / "config.yaml", ("clip",), raw)


@pytest.mark.parametrize(
    "clip",
    [
        {"image": "hf-hub:org/model", "text": "same"},
        {"image": "biomedclip", "text": "same"},
        {"image": "BiomedCLIP", "text": "same"},
        {"image": "local-dir:.", "text": "same"},
        {"image": "roberta-ViT-B-32", "text": "same"},
        {"text": "hf-hub:org/model"},
        {"text": "local-dir:."},
        {"text": "xlm-roberta-base-ViT-B-32"},
    ],
)
def test_a_model_from_elsewhere_needs_the_users_word(clip: dict[str, str], run: Path) -> None:
    with_clip(run, **clip)
    with pytest.raises(UserError, match=r"without downloads and without external code; .* add --external-model"):
        load_best(run)


@pytest.mark.parametrize(
    "image", ["timm:hf-hub:org/model", "timm:local-dir:/tmp", "timm:resnet18.x:/y", "ViT-B-16/../x"]
)
def test_names_that_lead_elsewhere_are_no_names(image: str, run: Path) -> None:
    with_clip(run, image=image)
    with pytest.raises(UserError, match=r"timm has no|open_clip has no"):
        load_run(run, checkpoint="best", device="cpu", external_model=True)


def test_a_run_that_never_saved_may_not_download_when_resumed(run: Path) -> None:
    from dcmt.config import GraderConfig
    from dcmt.train import train_grader

    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    spoil(run / "config.yaml", ("model", "pretrained"), "true")
    config, folder, _ = new_or_resumed(GraderConfig, ["--resume", str(run)], kind="grader", program="train.py")
    with pytest.raises(UserError, match=r"would download the weights of resnet10t; add --external-model"):
        train_grader(config, folder, resume=True)


@pytest.mark.parametrize(
    "command", ["predict", "evaluate", "attention", "verify", "compare", "review export", "review sanity"]
)
def test_every_command_that_opens_a_network_has_the_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--external-model" in capsys.readouterr().out
