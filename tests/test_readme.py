"""README does what it says: its commands run, one after the other, and what it names is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dcmt.cli import main
from dcmt.config import GraderConfig
from knee.engine.options import option_names
from knee.images.read import write_png
from knee.phantom import write_phantom
from segmentation.config import SegmenterConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def commands(section: str) -> list[list[str]]:
    """The indented commands of a section, as words, comments and line ends taken out; ``make`` and TensorBoard apart."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^    (.*)$", text, re.MULTILINE)
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [words for line in whole if (words := shlex.split(line, comments=True))]


MAIN_PATH = [*commands("Your own folder"), *commands("Cartilage masks"), *commands("Grading by the text of each grade")]


def in_process(words: list[str]) -> list[str]:
    """The arguments of ``dcmt`` for a command of README, with settings that make it short."""
    program, *arguments = words
    if program == ".venv/bin/python":
        assert arguments.pop(0) == "train.py"
        arguments.insert(0, "train")
    else:
        assert program == ".venv/bin/dcmt"
    places = {"MY_FOLDER": "my folder", "IMAGES": "my folder/train", "runs/OTHER": "runs/dcmt_clip_koa-f1-s0"}
    arguments = [places.get(word, word).replace("kl_xray-f0.1-s0", "kl_xray-f1-s0") for word in arguments]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    if arguments[:2] == ["segment", "train"]:
        return [*arguments, *SHORT]
    network = TOWERS if "clip" in " ".join(arguments) else NETWORK
    if arguments[0] == "train":
        return [*arguments, *SHORT, *network, *SUPERVISED]
    return [*arguments, *SHORT, *network] if arguments[0] in ("zeroshot", "probe") else arguments


def draw_some_masks(manifest: Path) -> None:
    """Name a mask for every other image, as README asks a person to do."""
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    band = np.zeros((SIZE, SIZE), np.uint8)
    band[SIZE // 2 : SIZE // 2 + 6] = 255
    write_png(manifest.parent / "band.png", band)
    table.loc[::2, "mask"] = "band.png"
    table.to_csv(manifest, index=False)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which somebody followed README, from images sorted by split and grade; its name has a blank."""
    folder = tmp_path_factory.mktemp("newcomer")
    drawn = write_phantom(folder / "drawn", kind="xray", patients=40, slices=1, size=SIZE, seed=1, drawn_masks=0)
    for row in pd.read_csv(drawn).itertuples():
        source = drawn.parent / str(row.image)
        target = folder / "my folder" / str(row.split) / str(row.grade) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    table = pd.read_csv(drawn).sort_values("grade")
    sheet = pd.DataFrame({"file": table["image"].map(lambda image: Path(image).stem), "KL": table["grade"]})
    sheet.to_excel(folder / "grades.xlsx", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        later = []
        for words in MAIN_PATH:
            if words[0].endswith("tensorboard"):
                continue
            if words[1] == "compare":
                later.append(words)
                continue
            if words[1:3] == ["segment", "train"]:
                draw_some_masks(folder / "data" / "mine.csv")
            assert main(in_process(words)) == 0, words
        for words in later:
            assert main(in_process(words)) == 0, words
        yield folder


def test_the_commands_of_readme_run(followed: Path) -> None:
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
    trained_on = list((followed / "my folder" / "train").rglob("*.png"))
    assert len(pd.read_csv(followed / "graded" / "predictions.csv")) == len(trained_on)
    joined = pd.read_csv(followed / "data" / "joined.csv")
    assert joined["grade"].tolist() == pd.read_csv(followed / "data" / "mine.csv")["grade"].tolist()
    masks = pd.read_csv(followed / "data" / "manifest_masks.csv")
    assert masks.loc[masks["split"] == "train", "mask"].notna().all()


def test_readme_is_read_whole() -> None:
    found = [" ".join(words[:3]) for words in MAIN_PATH]
    for command in ("manifest", "split", "evaluate", "attention", "predict", "compare", "segment", "zeroshot", "probe"):
        assert any(f"dcmt {command}" in words for words in found), command
    assert sum("train.py" in words for words in found) == 2


def test_make_targets_of_readme_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in commands("Two commands")]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_options_of_readme_are_there() -> None:
    names = {*option_names(GraderConfig), *option_names(SegmenterConfig)}
    named = set(
        re.findall(r"--((?:data|views|model|clip|teacher|loss|attention|optimizer|fit|report|unet)\.\w+)", README)
    )
    assert len(named) > 15
    assert named <= names


def test_files_of_readme_are_there() -> None:
    for name in re.findall(r"\b((?:configs|docs|clip_koa|experiments)/[\w./*]+\.(?:yaml|md|png))", README):
        if not name.endswith("/NAME.yaml"):
            assert list(ROOT.glob(name)), name
