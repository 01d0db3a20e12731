"""Options: from YAML and the command line to a config, and mistakes to one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcmt.config import GraderConfig
from dcmt.train import IMAGE_TEXT
from image_text.config import ImageTextConfig
from knee.engine.config import FitConfig
from knee.engine.launch import default_name, split_options
from knee.engine.options import config_from_values, option_names, read_config
from knee.engine.training import count_steps
from knee.errors import UserError
from segmentation.config import SegmenterConfig

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))


def read(*arguments: str, kind: type[Any] = GraderConfig) -> Any:
    return read_config(kind, arguments, program="train.py")


def test_defaults_stand_where_nothing_is_given() -> None:
    assert read() == GraderConfig()
    assert read(kind=SegmenterConfig) == SegmenterConfig()


def test_later_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("fit: {steps: 5, seed: 2}\nloss: {attention: 0}\n")
    config = read("--fit.seed", "1", "--config", str(path), "--fit.steps=9")
    assert (config.fit.steps, config.fit.seed, config.loss.attention) == (9, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fit.stepz", "3"], r"there is no option fit\.stepz; did you mean fit\.steps"),
        (["--steps", "3"], r"there is no option steps; did you mean .*fit\.steps"),
        (["--data.colour", "3"], r"there is no option data\.colour; (did you mean|known are data\.)"),
        (["--fit.steps", "many"], r"option fit\.steps: expected .*int.*many"),
        (["--fit.steps"], r"fit\.steps.*expected one argument"),
        (["--fit.steps", "0"], r"fit\.steps is 0; it must be 1 or more"),
        (["--fit.threads", "-1"], r"fit\.threads is -1; it must be from 0 to 1,024"),
        (["--fit.seed", str(2**64)], r"fit\.seed is 18446744073709551616; it must be from 0 to"),
        (["--fit.steps", "2.5"], r"option fit\.steps: expected"),
        (["--data.labeled_fraction", "0"], r"data\.labeled_fraction is 0(\.0)?; it must be above 0 and at most 1"),
        (["--data.labeled_fraction", "1.5"], r"data\.labeled_fraction is 1\.5"),
        (["--data.labeled_fraction", "nan"], r"data\.labeled_fraction: expected float"),
        (["--optimizer.name", "lion"], r"optimizer\.name.*lion"),
        (["--optimizer.learning_rate", "-1"], r"optimizer\.learning_rate is -1(\.0)?; it must be above 0"),
        (["--teacher.buffers", "none"], r"teacher\.buffers"),
        (["--data.percentiles", "[99, 1]"], r"data\.percentiles is \(99(\.0)?, 1(\.0)?\)"),
        (["--views.rotate_degrees", "999"], r"rotate_degrees is 999"),
        (["--attention.threshold", "1"], r"attention\.threshold is 1"),
        (["--report.cases", "17"], r"report\.cases is 17; it must be from 0 to 16"),
        (["--config", "nowhere.yaml"], r"--config: .*nowhere\.yaml"),
        (["extra"], r"there is no option extra; known are config, name, runs, data\.…, "),
        (
            ["--loss.probability_consistency", "0", "--loss.attention_consistency", "0"],
            r"data\.unlabeled_per_batch is above 0 but no consistency loss",
        ),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(*arguments)
    assert len(str(caught.value)) < 500
    assert "Traceback" not in str(caught.value)
    assert "<class" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit: {stepz: 3}", r"there is no option fit\.stepz; did you mean fit\.steps"),
        ("fitt: {steps: 3}", r"there is no option fitt"),
        ("fit: {steps: many}", r"fit\.steps.*many"),
        ("fit: [1, 2", r"--config"),
        ("fit: 3", r"fit is 3; write its options below it"),
        ("3", r"holds 3, not options"),
        ("", r"holds None, not options"),
        ("a: &a [*a]", r"."),
        ("\x00", r"--config"),
    ],
)
def test_a_mistake_in_a_file_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read("--config", str(path))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_loads(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    kind = (
        SegmenterConfig if "unet" in values else ImageTextConfig if values.get("method") in IMAGE_TEXT else GraderConfig
    )
    config = read("--config", str(path), kind=kind)
    again = config_from_values(kind, values, where=str(path))
    assert config == again
    assert not Path(config.data.manifest).is_absolute()
    assert path.read_text(encoding="utf-8").startswith("#"), "say what it is for"


def test_configs_are_there() -> None:
    assert {"phantom_unet"} <= {path.stem for path in CONFIGS}


def test_run_config_comes_back_as_it_was(grader_config: Callable[..., GraderConfig], tmp_path: Path) -> None:
    from knee.engine.run import create_run, open_run

    config = grader_config(**{"teacher.decay": 0.9, "data.percentiles": [1.0, 98.0], "views.cutout_count": 1})
    create_run(tmp_path / "run", config, kind="grader")
    _, values = open_run(tmp_path / "run")
    assert values.pop("kind") == "grader"
    assert config_from_values(GraderConfig, values, where="run") == config


def test_option_names_are_all_there() -> None:
    names = option_names(GraderConfig)
    assert {"name", "data.labeled_fraction", "views.noise", "fit.steps", "loss.ramp"} <= set(names)
    assert len(names) == len(set(names))


def test_what_is_no_option_of_the_config_is_taken_out() -> None:
    found = split_options(["--config", "a.yaml", "--labeled-fraction", "0.1", "--resume=runs/a", "--fit.seed", "2"])
    assert found[0] == ["--config", "a.yaml", "--data.labeled_fraction", "0.1", "--fit.seed", "2"]
    assert found[1] == Path("runs/a")
    assert split_options(["--skip-bad"])[0] == ["--data.skip_bad=true"]
    assert split_options(["--labeled-fraction=0.3"])[0] == ["--data.labeled_fraction=0.3"]
    with pytest.raises(UserError, match="--resume needs a run folder"):
        split_options(["--resume"])


def test_names_and_steps() -> None:
    assert default_name([], fraction=1.0, seed=0) == "run-f1-s0"
    assert count_steps(FitConfig(steps=100, epochs=2, accumulation=4), 10) == 5
    assert count_steps(FitConfig(steps=100, epochs=1, accumulation=50), 10) == 1


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("data.workers", 100_000, "from 0 to 256 processes"),
        ("data.mask_dilation", 1e7, "from 0 to 256 pixels"),
        ("data.labeled_per_batch", 10**11, "from 1 to 10,000"),
        ("data.unlabeled_per_batch", 10**11, "from 0 to 10,000"),
        ("fit.threads", 10**11, "from 0 to 1,024"),
        ("report.bootstrap", 10**9, "from 100 to 1,000,000"),
    ],
)
def test_numbers_that_no_machine_has_memory_for_are_refused(option: str, value: float, wanted: str) -> None:
    section, name = option.split(".")
    with pytest.raises(UserError, match=rf"{re.escape(option)} .*{re.escape(wanted)}"):
        config_from_values(GraderConfig, {section: {name: value}}, where="test")


def test_what_a_config_says_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("fit:\n  steps: 3\nfit:\n  seed: 5\n")
    with pytest.raises(UserError, match=r"(?s)twice\.yaml has duplicate entries.*line 3: 'fit' is on line 1 already"):
        read("--config", str(path))


def test_an_option_without_a_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("fit:\n  steps:\n")
    with pytest.raises(UserError, match=r"empty\.yaml: fit\.steps is empty; write a value"):
        read("--config", str(path))
    path.write_text("teacher:\n  decay: null\nclip:\n  scale_start: null\n")
    assert read("--config", str(path)).teacher.decay is None


@pytest.mark.parametrize(
    "option",
    [
        "loss.ramp",
        "loss.probability_consistency",
        "loss.teacher_temperature",
        "optimizer.learning_rate",
        "attention.sharpness",
    ],
)
def test_infinity_is_no_number_to_train_with(option: str) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(option)} is inf; it must be"):
        read(f"--{option}", ".inf")
    assert read("--fit.checkpoint_minutes", ".inf").fit.checkpoint_minutes == float("inf")
