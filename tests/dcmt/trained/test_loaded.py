"""Opening a run: earlier formats load, whatever else its files hold is refused or harmless."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcmt.trained.loaded import load_data, load_run
from knee.engine.run import RunFolder
from knee.errors import UserError
from tests.hostile import IN_JSON, IN_YAML, spoil, templates

from ..conftest import load_best, load_last, refused_or_harmless

pytestmark = pytest.mark.usefixtures("no_network")


def test_a_run_from_before_text_heads_still_loads(trained_run, tmp_path):
    run = shutil.copytree(trained_run.path, tmp_path / "old")
    values = yaml.safe_load((run / "config.yaml").read_text())
    del values["clip"], values["model"]["head"], values["loss"]["symmetry"], values["loss"]["flip_consistency"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    loaded = load_run(run, checkpoint="best", device="cpu")
    assert loaded.config == load_run(trained_run.path, checkpoint="best", device="cpu").config


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
