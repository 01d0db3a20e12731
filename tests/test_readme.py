"""README and docs are true: their commands and snippets run, what they name exists, their numbers are those of docs/results."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dcmt.cli import main
from knee.phantom import write_phantom
from knee.task import Grading

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data_splits" / "README.md"),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md"),
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
EVERYTHING = "\n".join(TEXTS.values())
SECTIONS = "data|views|model|clip|teacher|loss|fixmatch|attention|optimizer|fit|report|unet"
SIZE = 32
SHORT = [
    *("--data.image_size", str(SIZE), "--data.labeled_per_batch", "5", "--fit.steps", "2", "--fit.validate_every", "2"),
    *("--fit.log_every", "1", "--fit.precision", "fp32", "--fit.device", "cpu", "--fit.threads", "1"),
    *("--report.bootstrap", "100", "--report.cases", "1"),
]
SUPERVISED = ["--labeled-fraction", "1", "--data.unlabeled_per_batch", "0"]
NETWORK = ["--model.backbone", "resnet10t", "--model.stage", "2", "--model.stride", "8"]
TOWERS = [
    *("--clip.image", "timm:resnet10t", "--clip.stage", "2", "--clip.stride", "8", "--clip.embed_dim", "16"),
    *("--clip.pretrained", "false", "--clip.text", "small", "--clip.text_pretrained", "false"),
]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The commands of all bash blocks as words; comments and line continuations are removed."""
    whole = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in whole if (words := shlex.split(line, comments=True))]


def section(page: str, title: str) -> list[list[str]]:
    """The commands of one section of a page."""
    return commands(TEXTS[page].split(f"\n## {title}\n")[1].split("\n## ")[0])


MAIN_PATH = [
    *section("README.md", "Your data"),
    *section("docs/data.md", "Folders"),
    *section("docs/training.md", "After training"),
    *section("docs/data.md", "Masks"),
    *section("docs/training.md", "CLIP-KOA, zero-shot and linear probe"),
]


def in_process(words: list[str]) -> list[str]:
    """The arguments of ``dcmt`` for a documented command, with settings that make it short."""
    program, *arguments = words
    assert program == "dcmt"
    places = {"knees": "my knees"}
    arguments = [re.sub(r"-f0\.1-s0$", "-f1-s0", places.get(word, word)) for word in arguments]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    if arguments[:2] == ["segment", "train"]:
        return [*arguments, *SHORT]
    network = TOWERS if "clip" in " ".join(arguments) else NETWORK
    if arguments[0] == "train":
        return [*arguments, *SHORT, *network, *SUPERVISED]
    return [*arguments, *SHORT, *network] if arguments[0] in ("zeroshot", "probe") else arguments


def draw_some_masks(manifest: Path) -> None:
    """Name a mask for every other image, as the docs ask a person to do."""
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    band = np.zeros((SIZE, SIZE), np.uint8)
    band[SIZE // 2 : SIZE // 2 + 6] = 255
    assert cv2.imwrite(str(manifest.parent / "band.png"), band)
    table.loc[::2, "mask"] = "band.png"
    table.to_csv(manifest, index=False)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which somebody followed the docs, from images sorted by split and grade; the images' folder has a blank."""
    folder = tmp_path_factory.mktemp("newcomer")
    drawn = write_phantom(folder / "drawn", kind="xray", patients=40, slices=1, size=SIZE, seed=1, drawn_masks=0)
    for row in pd.read_csv(drawn).itertuples():
        source = drawn.parent / str(row.image)
        target = folder / "my knees" / str(row.split) / str(row.grade) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    table = pd.read_csv(drawn).sort_values("grade")
    sheet = pd.DataFrame({"file": table["image"].map(lambda image: Path(image).stem), "KL": table["grade"]})
    sheet.to_excel(folder / "grades.xlsx", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in MAIN_PATH:
            if words[0] == "tensorboard":
                continue
            if words[1:3] == ["segment", "train"]:
                draw_some_masks(folder / "data" / "mine.csv")
            assert main(in_process(words)) == 0, words
        yield folder


def test_the_commands_of_the_docs_run(followed: Path) -> None:
    runs = {path.name for path in (followed / "runs").iterdir()}
    assert runs == {
        "kl_xray-f1-s0",
        "unet",
        "dcmt_clip_koa-f1-s0",
        "clip_koa_paper-zeroshot",
        "clip_koa_paper-probe",
    }
    run = followed / "runs" / "kl_xray-f1-s0"
    assert (run / "metrics_test.json").is_file()
    assert (run / "attention_test" / "sheet.png").is_file()
    graded = list((followed / "my knees").rglob("*.png"))
    assert len(pd.read_csv(followed / "graded" / "predictions.csv")) == len(graded)
    joined = pd.read_csv(followed / "data" / "joined.csv")
    assert joined["grade"].tolist() == pd.read_csv(followed / "data" / "mine.csv")["grade"].tolist()
    masks = pd.read_csv(followed / "data" / "manifest_masks.csv")
    assert masks.loc[masks["split"] == "train", "mask"].notna().all()


def test_the_commands_are_read_whole() -> None:
    found = [" ".join(words[:3]) for words in MAIN_PATH]
    for command in ("manifest", "split", "evaluate", "attention", "predict", "compare", "segment", "zeroshot", "probe"):
        assert any(f"dcmt {command}" in words for words in found), command
    assert sum("dcmt train" in words for words in found) == 2
    assert all(words[0] in ("dcmt", "tensorboard") for words in MAIN_PATH)


def test_readme_loads_a_run_and_predicts(trained_run: Any, phantom: Path, tmp_path: Path) -> None:
    snippet = next(block for block in blocks(README, "python") if "dcmt.load(" in block)
    shutil.copytree(trained_run.path, tmp_path / "runs" / "kl_xray-f0.1-s0")
    images = sorted((phantom.parent / "images").glob("*.png"))[:5]
    for image in images:
        (tmp_path / "new_knees").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / "new_knees")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(compile(snippet, "README.md", "exec"), names)
    table, heat_map = names["table"], np.asarray(names["heat_map"])
    assert [Path(image).name for image in table["image"]] == [image.name for image in images]
    assert {"grade", "name", "attention"} < set(table.columns)
    assert set(table["grade"]) <= {0, 1, 2}
    others = table.drop(columns=["image", "grade", "name", "attention", "familiarity"]).select_dtypes("number")
    probabilities = [name for name in others if others[name].between(0, 1).all()]
    assert len(probabilities) == 3
    assert np.allclose(table[probabilities].sum(axis=1), 1, atol=1e-4)
    assert heat_map.ndim == 2
    assert 0 <= heat_map.min() <= heat_map.max() <= 1


class TwoLayers(nn.Module):
    """A student of one's own: one convolution, and a classifier that also gives the class maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 6, 3, stride=4, padding=1)
        self.classifier = nn.Conv2d(6, 3, 1)

    def forward(self, images: Tensor) -> Grading:
        maps = self.classifier(torch.relu(self.features(images)))
        return Grading(maps.mean((2, 3)), maps)


def test_the_loop_of_readme_trains_student_and_teacher() -> None:
    snippet = next(block for block in blocks(README, "python") if "TwoStreamBatchSampler(" in block)
    torch.manual_seed(0)
    student = TwoLayers()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    # −1: no grade. A loop that used it would fail, since no class is called so.
    grades = [index % 3 if index < 8 else -1 for index in range(16)]
    masks = (torch.rand(16, SIZE, SIZE) > 0.5).float()
    dataset = [
        (torch.rand(1, SIZE, SIZE), torch.tensor(grade), mask) for grade, mask in zip(grades, masks, strict=True)
    ]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    names: dict[str, Any] = {"student": student, "dataset": dataset, "optimizer": optimizer}
    names |= {"labeled": range(8), "unlabeled": range(8, 16)}
    exec(compile(snippet, "README.md", "exec"), names)
    teacher = names["teacher"].state_dict()
    assert torch.isfinite(names["loss"])
    assert names["step"] == 3
    for name, value in student.state_dict().items():
        assert not torch.equal(value, before[name]), name
        # Four updates of decay 0.99 take the teacher a few hundredths of the way to the student.
        assert 0 < (teacher[name] - before[name]).abs().max() < 0.05 * (value - before[name]).abs().max()
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())


def test_every_snippet_of_readme_is_run() -> None:
    assert len(blocks(README, "python")) == 2
    export = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert len(blocks(export, "python")) == 1, "which tests/dcmt/onnx/test_predict.py runs"
    assert "```python" not in EVERYTHING.replace(README, "").replace(export, "")


def documented() -> list[list[str]]:
    """Every ``dcmt`` command in a bash block, or in a sentence."""
    spoken = [shlex.split(text) for text in re.findall(r"`(dcmt [a-z][^`]*)`", EVERYTHING)]
    return [*(words for words in commands(EVERYTHING) if words[0] == "dcmt"), *spoken]


def subcommand(words: list[str]) -> tuple[str, ...]:
    """``("review", "export")`` of ``dcmt review export RUN …``."""
    return tuple(words[1 : 3 if words[1] in ("segment", "review") and len(words) > 2 else 2])


def with_config(words: list[str]) -> tuple[str, ...]:
    """The subcommand, with the config that makes it one of images and reports, whose options are others."""
    configs = [word for word in words if word.endswith(("lumbarclip.yaml", "beyond_clip.yaml"))]
    return (*subcommand(words), *(part for one in configs for part in ("--config", str(ROOT / one))))


@cache
def help_of(command: tuple[str, ...]) -> str:
    """What ``dcmt COMMAND --help`` prints."""
    printed = io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(printed):
        try:
            code = main([*command, "--help"])
        except SystemExit as ended:
            code = ended.code
    assert code in (0, None), command
    return printed.getvalue()


def names_option(text: str, option: str) -> bool:
    """Whether a help text lists an option."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def test_documented_commands_have_the_options_that_they_are_shown_with() -> None:
    found = documented()
    assert len({subcommand(words) for words in found}) >= 17
    for words in found:
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert names_option(help_of(with_config(words)), option), words


def test_options_of_the_docs_are_there() -> None:
    dotted = {name for _, name in re.findall(rf"(`|--)((?:{SECTIONS})\.[a-z]\w*)", EVERYTHING)}
    files = {name for name in dotted if name.endswith((".md", ".csv"))}
    help_texts = help_of(("train",)) + help_of(("segment", "train"))
    assert len(dotted) > 40
    assert [name for name in sorted(dotted - files) if not names_option(help_texts, f"--{name}")] == []
    spoken = set(re.findall(r"(?<=[`( ])--[a-z][\w.-]*", "\n".join(re.findall(r"`([^`\n]+)`", EVERYTHING))))
    spoken |= set(re.findall(r"`(--[a-z][\w.-]*)", EVERYTHING))
    everywhere = "".join(help_of(command) for command in sorted({subcommand(words) for words in documented()}))
    assert len(spoken) > 20
    spoken -= {"--section.name", "--no-deps"}  # the second is pip's
    assert [option for option in sorted(spoken) if not names_option(everywhere, option)] == []


def test_make_targets_of_the_docs_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [words[1] for words in section("README.md", "Quick start")] == ["demo", "test"]
    targets = {words[1] for words in commands(EVERYTHING) if words[0] == "make"}
    targets |= set(re.findall(r"(?:`|; )make ([a-z][a-z-]*)", EVERYTHING))
    assert targets >= {"demo", "test", "check", "faults", "results"}
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_files_of_the_docs_are_there() -> None:
    folders = "configs|docs|knee|dcmt|clip_koa|segmentation|image_text|experiments|data_splits"
    pattern = rf"(?<![\w/])((?:{folders})/[\w./*-]+\.(?:yaml|md|png|py|csv))"
    named = set(re.findall(pattern, EVERYTHING)) - {"data_splits/mine.csv", "data_splits/joint.csv"}
    assert len(named) > 40
    missing = [name for name in sorted(named) if not list(ROOT.glob(name)) and name != "data_splits/NAME.csv"]
    assert missing == []


def test_links_of_the_docs_lead_somewhere() -> None:
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith("https://"):
                assert ((ROOT / page).parent / target.partition("#")[0]).exists(), (page, target)


def test_names_of_the_docs_can_be_imported() -> None:
    named = set(re.findall(r"`((?:knee|dcmt|clip_koa)(?:\.[A-Za-z_]+)+)`", EVERYTHING))
    assert len(named) > 10
    for name in sorted(named):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


NUMBER = r"[-−+]?\d\.\d{3}"
ESTIMATE = re.compile(rf"({NUMBER})\s\[({NUMBER}),\s({NUMBER})\]")


def estimates(text: str) -> set[tuple[str, ...]]:
    """Numbers with their intervals, whichever way round the difference is taken."""
    return {(value.strip("-−+"), *sorted(end.strip("-−+") for end in ends)) for value, *ends in ESTIMATE.findall(text)}


def table_numbers(text: str) -> set[str]:
    """Numbers of three decimals in tables, without their signs."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return {number.strip("-−+") for number in re.findall(rf"(?<![\d.]){NUMBER}(?!\d)", "\n".join(rows))}


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/review.md"])
def test_numbers_of_the_docs_are_those_of_the_results(page: str) -> None:
    results = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.md"))
    shown = estimates(TEXTS[page])
    assert shown
    assert shown - estimates(results) == set()
    assert table_numbers(TEXTS[page]) - table_numbers(results) == set()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130
