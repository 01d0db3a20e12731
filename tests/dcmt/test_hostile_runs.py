"""A run folder from a stranger is data: keys, verdicts, links and names of models are refused in a sentence, or harmless."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcmt.cli import main
from dcmt.config import GraderConfig
from dcmt.train import build_grader, train_grader
from dcmt.trained.loaded import load_run
from knee.engine.launch import new_or_resumed
from knee.engine.run import open_run
from knee.errors import UserError
from tests.hostile import IN_JSON, listing, spoil

from .conftest import load_best

pytestmark = pytest.mark.usefixtures("no_network")

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


@pytest.mark.parametrize(("place", "name"), METRICS)
def test_metrics(
    place: tuple[Any, ...], name: str, run: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run / "metrics_test.json", place, IN_JSON[name])
    before = listing(phantom.parent)
    assert main(["verify", str(run), "--no-weights"]) == 2
    assert len(capsys.readouterr().err) < 3000
    assert listing(phantom.parent) == before


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
def test_names_that_lead_elsewhere_are_not_known(image: str, run: Path) -> None:
    with_clip(run, image=image)
    with pytest.raises(UserError, match=r"timm has no|open_clip has no"):
        load_run(run, checkpoint="best", device="cpu", external_model=True)


def test_a_run_that_never_saved_may_not_download_when_resumed(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    spoil(run / "config.yaml", ("model", "pretrained"), "true")
    config, folder, _ = new_or_resumed(GraderConfig, ["--resume", str(run)], kind="grader", program="train.py")
    with pytest.raises(UserError, match=r"would download the weights of resnet10t; add --external-model"):
        train_grader(config, folder, resume=True)


@pytest.mark.parametrize("clip", [False, True])
def test_a_huge_network_is_refused_by_its_shapes_before_it_takes_memory(
    clip: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if clip:
        with_clip(run, image="timm:vit_giant_patch16_gap_224", stride=16)
    else:
        model = {"backbone": "vit_giant_patch16_gap_224", "stage": -1, "stride": 16}
        spoil(run / "config.yaml", ("model",), json.dumps(model))
    devices = []

    def build(*arguments: Any, **options: Any) -> Any:
        devices.append(torch.empty(0).device.type)
        return build_grader(*arguments, **options)

    monkeypatch.setattr("dcmt.trained.loaded.build_grader", build)
    monkeypatch.setattr("dcmt.train.build_grader", build)
    with pytest.raises(UserError, match=r"does not fit the network of this run's config: .* is missing"):
        load_best(run)
    config, folder, _ = new_or_resumed(
        GraderConfig, ["--resume", str(run), "--fit.steps", "8"], kind="grader", program="train.py"
    )
    with pytest.raises(UserError, match=r"does not fit the network of this run's config: .* is missing"):
        train_grader(config, folder, resume=True)
    assert devices == ["meta", "meta"]
