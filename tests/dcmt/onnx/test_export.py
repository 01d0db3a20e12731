"""dcmt export: every family of networks agrees with torch, also on letterboxed images, and nothing else is written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clip_koa.build import build_clip_grader
from clip_koa.config import ClipConfig
from dcmt.cli import main
from dcmt.network import build_network
from dcmt.onnx import export
from dcmt.onnx.card import Card
from dcmt.onnx.export import Exported, GraderOutputs, largest_difference, onnx_bytes
from dcmt.onnx.runtime import open_session, session_of
from knee.attention import AttentionConfig
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.evaluation.familiarity import Familiarity
from knee.evaluation.predictions import iterate_attention
from knee.grades import load_grade_set
from knee.nn.flips import FlipAveraged
from knee.nn.temperature import Tempered

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE = 40


def card(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "kind": "grader", "network": "teacher", "grade_set": "kl", "grades": ["a", "b", "c", "d", "e"], "image_size": SIZE,
        "percentiles": [0.5, 99.5], "mirror_side": "L", "template": [], "modalities": [], "distances": [], "farthest": 0.0,
        "temperature": 1.5, "flip_tta": False, "severest": False,
        "opset": 17, "weights_sha256": "0", "step": 3, "license": "x", "version": "1",
    }  # fmt: skip
    return Card(**values | changes)


def grader(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "clip":
        config = ClipConfig(image="timm:vit_tiny_patch16_224", text="small", pretrained=False, stride=8)
        clip = build_clip_grader(config, load_grade_set("kl"), image_size=SIZE)
        clip.freeze_text()
        return clip
    backbone, stride = {
        "cnn": ("resnet10t", 8),
        "vit": ("vit_tiny_patch16_224", 0),
        "mobile": ("tf_efficientnet_lite0", 16),
    }[family]
    size = 48 if family == "vit" else SIZE
    return build_network(
        backbone, grades=5, image_size=size, stride=stride, normalise="local" if family == "cnn" else "image"
    )


def exported(family: str, familiarity: Familiarity | None = None) -> Exported:
    bare = grader(family)
    network = Tempered(FlipAveraged(bare) if family == "mobile" else bare, 1.5)
    loaded: Any = SimpleNamespace(
        networks={"teacher": network},
        bare={"teacher": bare},
        config=SimpleNamespace(attention=AttentionConfig()),
        grade_set=load_grade_set("kl"),
    )
    outputs = ("probabilities", "attention_x", "attention_f", *(("distance",) if familiarity else ()))
    network_outputs = GraderOutputs(loaded, "teacher", familiarity).eval()
    return Exported(network_outputs, outputs, card(image_size=48 if family == "vit" else SIZE), 25.0)


def letterboxed(count: int, size: int) -> torch.Tensor:
    """Smooth images with bars at the sides, and with a black line and a black pixel that are no padding."""
    coarse = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(5))
    images = (1 + 254 * nn.functional.interpolate(coarse, (size, size), mode="bilinear")).to(torch.uint8)
    images[:, :, :, :9] = images[:, :, :, -9:] = 0
    images[0, :, 20] = 0
    images[-1, 0, 11, 17] = 0
    return images


@pytest.mark.parametrize("family", ["cnn", "vit", "clip", "mobile"])
def test_a_family_agrees_with_the_predictions_of_torch(family: str) -> None:
    found = exported(family)
    content = onnx_bytes(found)
    assert largest_difference(found, content) <= 1e-4
    images = letterboxed(4, found.card.image_size)
    probabilities, x, f = session_of(content)(images.numpy())
    (wanted,) = iterate_attention(found.network.grader, [(images, np.arange(4))], decision="median")
    np.testing.assert_allclose(probabilities, wanted.probabilities, atol=1e-5)
    np.testing.assert_allclose(x, wanted.attention, atol=1e-4)
    np.testing.assert_allclose(f, wanted.mask, atol=2e-3)
    assert (x[:, :, :9] == 0).all() and (f[:, :, :9] < 1e-6).all()
    if family != "mobile":
        assert probabilities.std(0).max() > 0


def test_a_file_that_differs_is_not_written(
    trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "MOST_DIFFERENCE", -1.0)
    assert main(["export", str(trained_run.path), "--out", str(tmp_path / "m.onnx")]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_operators_is_explained() -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.special.bessel_j0(images.float()),)

    with pytest.raises(UserError, match=r"cannot be written as ONNX opset 17 .*; use the run with dcmt predict"):
        onnx_bytes(Exported(Odd(), ("probabilities",), card()))


def test_distance_is_that_of_the_reference() -> None:
    draw = np.random.default_rng(0)
    features = 512 + 256
    parts = [draw.normal(size=shape).astype(np.float32) for shape in ((features,), (features, features), (3, features))]
    familiarity = Familiarity(*parts, np.ones(1, np.float32))
    found = exported("cnn", familiarity)
    images = letterboxed(3, SIZE)
    distance = session_of(onnx_bytes(found))(images.numpy())[3]
    with torch.no_grad():
        wanted = familiarity.distance(export.torch.cat([_pooled(found, images), _thumbnails(images)], 1).numpy())
    np.testing.assert_allclose(distance, wanted, rtol=1e-4)


def _pooled(found: Exported, images: torch.Tensor) -> Any:
    return found.network.bare.pooled(export.as_input(images))


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    return export.thumbnails(export.as_input(images))


def test_a_segmenter_gives_the_probability_of_cartilage(trained_segmenter: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    assert main(["export", str(trained_segmenter.path), "--out", str(path), "--license", "CC0"]) == 0
    session = open_session(path.read_bytes())
    values = json.loads(session.get_modelmeta().custom_metadata_map["dcmt"])
    assert (values["kind"], values["license"], values["opset"]) == ("segmenter", "CC0", 17)
    options = argparse.Namespace(
        run=trained_segmenter.path, student=False, flip_tta=False, external_model=False, license=""
    )
    images = letterboxed(2, 48)
    with torch.no_grad():
        (wanted,) = export._of_segmenter(options).network(images)
    np.testing.assert_allclose(session.run(["mask"], {"image": images.numpy()})[0], wanted, atol=1e-4)
    assert main(["export", str(trained_segmenter.path), "--out", str(tmp_path / "2.onnx"), "--student"]) == 2
