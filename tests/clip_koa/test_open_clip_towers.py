"""open_clip towers: as open_clip's own; every refusal is one sentence with a hint; nothing uses the network."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shutil
import sys
import types

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip_koa.open_clip_towers import BIOMEDCLIP, clip_towers, external_source, supported_clip_models
from clip_koa.timm_towers import timm_tower
from knee.errors import UserError

from .conftest import refusal


@pytest.fixture
def no_transformers(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else real(name))


def test_unknown_names_offer_near_ones():
    assert "did you mean ViT-B-16" in refusal(clip_towers, "vit-b16", image_size=224)
    assert "did you mean resnet18" in refusal(timm_tower, "resnt18", embed_dim=4, image_size=64)
    assert "known are resnet18.a1_in1k" in refusal(timm_tower, "resnet18.foo", embed_dim=4, image_size=64)
    assert "did you mean openai?" in refusal(clip_towers, "ViT-B-16-quickgelu", image_size=224, pretrained="opnai")


def test_models_without_patches_are_refused_with_another():
    assert "use timm:resnet50" in refusal(clip_towers, "RN50", image_size=224)
    assert "use a ViT" in refusal(clip_towers, "coca_ViT-B-32", image_size=224)
    assert {"ViT-B-16-quickgelu", "ViT-B-16"} <= set(supported_clip_models())
    assert not {"RN50", "coca_ViT-B-32"} & set(supported_clip_models())


def test_offline_is_one_sentence_with_the_two_other_ways(offline):
    for message in (
        refusal(clip_towers, "ViT-B-16-quickgelu", image_size=224),
        refusal(timm_tower, "resnet18", embed_dim=4, image_size=64, pretrained=True),
    ):
        assert "could not be downloaded (the hub was not reached" in message
        assert "give a local file or folder by clip.pretrained" in message
        assert "clip.pretrained: false" in message
    assert "local-dir:FOLDER" in refusal(clip_towers, "hf-hub:some/model", image_size=224)


@pytest.mark.parametrize("name", ["biomedclip", BIOMEDCLIP])
def test_biomedclip_names_the_extra_that_it_needs(no_transformers, offline, name):
    assert "pip install 'dcmt-knee[biomedclip]'" in refusal(clip_towers, name, image_size=224)


def test_weights_of_another_architecture_are_refused(tmp_path, clip_folder):
    linear = tmp_path / "linear.safetensors"
    save_file(torch.nn.Linear(3, 3).state_dict(), linear)
    name = f"local-dir:{clip_folder}"
    message = refusal(clip_towers, name, image_size=64, pretrained=str(linear))
    assert "of another architecture" in message
    assert str(linear) in message
    message = refusal(timm_tower, "test_resnet", embed_dim=4, image_size=64, stride=0, pretrained=str(linear))
    assert "ValueError: 0 of" in message
    other = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 64, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16},
        text_cfg={"width": 16, "heads": 2, "layers": 1},
    )
    wrong = tmp_path / "other.safetensors"
    save_file(other.state_dict(), wrong)
    assert "of another architecture" in refusal(clip_towers, name, image_size=64, pretrained=str(wrong))


def test_files_that_are_not_weights_are_refused(tmp_path, clip_folder):
    text = tmp_path / "notes.pt"
    text.write_text("not weights", encoding="utf-8")
    pickled = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), pickled)  # a whole module: loading it would run code
    for path in (text, pickled):
        assert "does not hold weights" in refusal(
            timm_tower, "test_resnet", embed_dim=4, image_size=64, stride=0, pretrained=str(path)
        )
        assert "does not hold weights" in refusal(
            clip_towers, f"local-dir:{clip_folder}", image_size=64, pretrained=str(path)
        )
    assert "does not exist" in refusal(
        timm_tower, "test_resnet", embed_dim=4, image_size=64, stride=0, pretrained="no.pt"
    )
    (tmp_path / "empty").mkdir()
    assert "contains no weights" in refusal(
        clip_towers, f"local-dir:{clip_folder}", image_size=64, pretrained=str(tmp_path / "empty")
    )
    assert "does not describe a model" in refusal(clip_towers, f"local-dir:{tmp_path}", image_size=64)


def test_the_activation_is_that_of_the_named_weights_without_fetching_them(offline):
    """OpenAI's weights want the fast GELU, whatever the model's name says; the weights do not hold it."""
    towers = clip_towers("ViT-B-32", image_size=64, pretrained="openai", fresh=False)
    assert "QuickGELU" in {type(module).__name__ for module in towers.image.modules()}


@pytest.fixture
def tokenizer_folder(clip_folder, tmp_path):
    """A model's folder with a tokenizer that brings code of its own, and a description that asks for it to be run."""
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    description = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    description["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "org/tokenizer",
        "tokenizer_kwargs": {
            "trust_remote_code": True, "clean": "canonicalize", "strip_sep_token": [], "code_revision": "x",
        },
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(description), encoding="utf-8")
    (folder / "config.json").unlink(missing_ok=True)
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom transformers import PreTrainedTokenizer\n"
    (folder / "canary.py").write_text(
        f"{code}class Canary(PreTrainedTokenizer):\n    vocab_size = 3\n", encoding="utf-8"
    )
    settings = {"tokenizer_class": "Canary", "auto_map": {"AutoTokenizer": ["canary.Canary", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_options_of_a_tokenizer_that_name_code_are_left_out(tokenizer_folder, monkeypatch):
    given = {}

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name, **options):
            given.update(options, name=name)
            raise OSError("no such tokenizer")

    fake = types.ModuleType("transformers")
    fake.AutoTokenizer, fake.__spec__ = AutoTokenizer, importlib.machinery.ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    name = f"local-dir:{tokenizer_folder}"
    assert "tokenizer" in refusal(clip_towers, name, image_size=64)
    assert given["trust_remote_code"] is False
    assert not set(given) & {"code_revision", "strip_sep_token"}
    given.clear()
    clip_towers(name, image_size=64, fresh=False)
    assert given == {}, "a network for a checkpoint needs no tokenizer"


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs the extra biomedclip")
def test_code_in_a_tokenizers_folder_is_never_run(tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match="tokenizer"):
        clip_towers(f"local-dir:{tokenizer_folder}", image_size=64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs the extra biomedclip")
def test_code_in_a_text_towers_folder_is_never_run(tokenizer_folder, tmp_path):
    path = tokenizer_folder / "open_clip_config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description["model_cfg"]["text_cfg"]["hf_model_name"] = "org/model"
    path.write_text(json.dumps(description), encoding="utf-8")
    settings = {"model_type": "canary", "auto_map": {"AutoConfig": "canary.Canary"}}
    (tokenizer_folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for fresh in (True, False):
        assert "needs its own code, which is never run" in refusal(
            clip_towers, f"local-dir:{tokenizer_folder}", image_size=64, fresh=fresh
        )
    assert not (tmp_path / "ran").exists()


def test_models_that_need_more_than_what_is_installed_are_named():
    for name in ("biomedclip", "hf-hub:a/b", "local-dir:x", "roberta-ViT-B-32"):
        assert external_source(name, fresh=False)
    assert "tokenizer" in external_source("ViT-B-16-SigLIP", fresh=True)
    for name in ("ViT-B-16-SigLIP", "ViT-B-16-quickgelu", "EVA02-B-16", "no such model"):
        assert not external_source(name, fresh=False)


def test_clip_tower_agrees_with_open_clip(clip_folder):
    towers = clip_towers(f"local-dir:{clip_folder}", image_size=64)
    reference = open_clip.create_model(f"local-dir:{clip_folder}")
    towers.image.eval()
    reference.eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = towers.text.tokenizer(["a normal knee", "severe osteoarthritis"])
    with torch.no_grad():
        features = towers.image(pixels)
        maps = reference.visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True)
        patches = torch.einsum("bchw,cd->bdhw", maps["image_intermediates"][0], reference.visual.proj)
        assert torch.allclose(features.pooled, reference.encode_image(pixels), atol=1e-5)
        assert torch.allclose(features.patches, patches, atol=1e-5)
        assert torch.allclose(towers.text.encoder(tokens), reference.encode_text(tokens), atol=1e-5)
    assert towers.scale == pytest.approx(50)
    assert towers.image.pixel_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("size", [32, 112, 128])
def test_clip_position_embeddings_are_interpolated(clip_folder, size):
    towers = clip_towers(f"local-dir:{clip_folder}", image_size=size)
    features = towers.image(torch.zeros(1, 3, size, size))
    assert features.patches.shape == (1, 24, size // 16, size // 16)
    at_64 = clip_towers(f"local-dir:{clip_folder}", image_size=64)
    own, other = (tower.image.visual.positional_embedding.detach() for tower in (towers, at_64))
    assert torch.equal(own[0], other[0])  # the class token's is not interpolated
    assert own[1:].mean() == pytest.approx(other[1:].mean().item(), abs=0.02)


def test_a_frozen_clip_tower_gets_no_gradient_and_stays_in_eval(clip_folder):
    tower = clip_towers(f"local-dir:{clip_folder}", image_size=64, trainable=False).image
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower(torch.zeros(1, 3, 64, 64)).patches.requires_grad


@pytest.mark.slow
def test_the_paper_tower_has_a_14_by_14_grid():
    towers = clip_towers("ViT-B-16-quickgelu", image_size=224, pretrained=False)
    with torch.no_grad():
        features = towers.image(torch.zeros(1, 3, 224, 224))
    assert features.pooled.shape == (1, 512)
    assert features.patches.shape == (1, 512, 14, 14)
    assert sum(parameter.numel() for parameter in towers.image.parameters()) == 86_192_640
