"""Small towers that are built in milliseconds, without a download."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

import knee.nn.weights
from clip_koa.head import ImageFeatures, SimilarityScale
from clip_koa.model import ClipGrader
from clip_koa.prompts import read_prompts
from clip_koa.towers import FixedTexts, GradeTexts
from knee.errors import UserError
from knee.grades import load_grade_set

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A folder as open_clip saves one: a tiny CLIP with random weights and a scale of 50."""
    folder = tmp_path_factory.mktemp("tiny_clip")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    description = json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(description, encoding="utf-8")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    with torch.no_grad():
        model.logit_scale.copy_(torch.tensor(50.0).log())
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


class CountingEncoder(nn.Module):
    """A text encoder that counts its forward passes."""

    def __init__(self, embed_dim: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(49408, embed_dim)
        self.dropout = nn.Dropout(0.5)
        self.passes = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        return self.dropout(self.table(tokens)).mean(1)


class PatchTower(nn.Module):
    """A tower made by hand: patches of 8 px, embedded linearly; the image's embedding is their mean."""

    pooled_is_mean = True
    pixel_mean = (0.5,)
    pixel_std = (0.25,)

    def __init__(self, embed_dim: int = 8) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.conv = nn.Conv2d(3, embed_dim, 8, stride=8, bias=False)

    def forward(self, pixels: Tensor) -> ImageFeatures:
        patches = self.conv(pixels)
        return ImageFeatures(patches.mean((2, 3)), patches)


@pytest.fixture
def counting_texts():
    """Makes ``GradeTexts`` of the KL prompts on a counting encoder."""

    def make(*, trainable: bool) -> GradeTexts:
        phrases, grades = read_prompts("kl", load_grade_set("kl")).flat
        torch.manual_seed(1)
        return GradeTexts(CountingEncoder(), SimpleTokenizer()(phrases), grades, embed_dim=8, trainable=trainable)

    return make


@pytest.fixture
def patch_grader(counting_texts):
    """Makes a grader of the hand-made tower, on counted or on given texts."""

    def make(*, trainable_text: bool = True, texts: Tensor | None = None, **options) -> ClipGrader:
        torch.manual_seed(0)
        tower = FixedTexts(texts) if texts is not None else counting_texts(trainable=trainable_text)
        return ClipGrader(PatchTower(tower.embed_dim), tower, SimilarityScale(), **options)

    return make


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and nothing in its cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(knee.nn.weights, "can_reach", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def refusal(build, *args, **options) -> str:
    with pytest.raises(UserError) as caught:
        build(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
