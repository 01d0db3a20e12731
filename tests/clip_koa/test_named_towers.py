"""Names and weights: every refusal is one UserError with a way out; nothing here reaches for the network."""

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

import knee.nn.weights
from clip_koa.build import build_clip_grader, read_text_embeddings
from clip_koa.config import ClipConfig
from clip_koa.open_clip_towers import BIOMEDCLIP, clip_towers, external_source, supported_clip_models
from clip_koa.timm_towers import timm_tower
from knee.errors import UserError
from knee.grades import load_grade_set

KL = load_grade_set("kl")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and nothing in its cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(knee.nn.weights, "can_reach", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def no_transformers(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else real(name))


def refusal(build, *args, **options) -> str:
    with pytest.raises(UserError) as caught:
        build(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def test_the_hub_is_left_as_it_was(offline):
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    refusal(timm_tower, "resnet18", embed_dim=4, image_size=64, pretrained=True)
    assert before == constants.HF_HUB_OFFLINE


def test_random_weights_never_ask_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(knee.nn.weights, "can_reach", asked.append)
    tower = timm_tower("test_resnet", embed_dim=4, image_size=64, stride=0)
    assert sum(weight.numel() for weight in tower.parameters()) > 0
    assert asked == []


@pytest.mark.parametrize("name", ["biomedclip", BIOMEDCLIP])
def test_biomedclip_says_which_extra_it_needs(no_transformers, offline, name):
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


def test_files_that_are_no_weights_are_refused(tmp_path, clip_folder):
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


def test_strides_and_stages_a_backbone_cannot_take():
    message = refusal(timm_tower, "vgg11", embed_dim=4, image_size=64, stride=16)
    assert "cannot change its stride in timm; set clip.stride to 0" in message
    message = refusal(timm_tower, "resnet18", embed_dim=4, image_size=96, stride=16, stage=-4)
    assert "clip.stride: resnet18 gives a feature map of 24 × 24 for 96 px, a stride of about 4, not 16" in message
    assert "-1 is the last" in refusal(timm_tower, "resnet18", embed_dim=4, image_size=96, stride=0, stage=9)


def test_a_side_that_is_no_multiple_of_the_stride_is_rounded_up():
    tower = timm_tower("resnet18", embed_dim=4, image_size=112, stride=32)
    assert tower(torch.zeros(2, 3, 112, 112)).patches.shape == (2, 4, 4, 4)


def test_towers_of_different_spaces_are_refused(clip_folder, tmp_path):
    import numpy as np

    path = tmp_path / "texts.npy"
    np.save(path, np.ones((5, 7), np.float32))
    config = ClipConfig(image=f"local-dir:{clip_folder}", text=str(path))
    assert "24 dimensions" in refusal(build_clip_grader, config, KL, image_size=64)


def test_embeddings_of_the_grades_from_a_file(tmp_path):
    import numpy as np

    path = tmp_path / "texts.npy"
    np.save(path, np.eye(5, 6))
    config = ClipConfig(image="timm:test_resnet", text=str(path), pretrained=False, stride=0, train_text=False)
    grader = build_clip_grader(config, KL, image_size=64)
    assert grader.image_tower.embed_dim == 6
    assert torch.equal(grader.text_tower(), torch.eye(5, 6))
    assert "must contain 3 rows" in refusal(read_text_embeddings, path, 3)
    np.save(path, np.full((5, 6), np.nan))
    assert "finite" in refusal(read_text_embeddings, path, 5)
    path.write_text("x", encoding="utf-8")
    assert "not a .npy file of numbers" in refusal(read_text_embeddings, path, 5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"embed_dim": 1}, "clip.embed_dim is 1"),
        ({"stride": -1}, "clip.stride is -1"),
        ({"scale_start": 200.0}, "clip.scale_start is 200.0"),
        ({"image": "timm:resnet18"}, "a timm backbone has no text tower"),
    ],
)
def test_configurations_are_checked_when_built(options, expected):
    with pytest.raises(ValueError, match=expected):
        ClipConfig(**options)


def test_a_network_for_a_checkpoint_needs_neither_weights_nor_prompts(clip_folder, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(
        "grade_set: kl\ngrades: {0: [none], 1: [doubtful, perhaps], 2: [minimal], 3: [moderate], 4: [severe]}\n"
    )
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    config = ClipConfig(image=f"local-dir:{folder}", prompts=str(prompts))
    trained = build_clip_grader(config, KL, image_size=32, mean=[0.5], std=[0.25]).eval()
    (folder / "open_clip_model.safetensors").unlink()
    prompts.unlink()
    loaded = build_clip_grader(config, KL, image_size=32, mean=[0.5], std=[0.25], fresh=False).eval()
    loaded.load_state_dict(trained.state_dict())
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded(images).logits, trained(images).logits)


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


def test_models_that_need_more_than_what_is_installed_are_told():
    for name in ("biomedclip", "hf-hub:a/b", "local-dir:x", "roberta-ViT-B-32"):
        assert external_source(name, fresh=False)
    assert "tokenizer" in external_source("ViT-B-16-SigLIP", fresh=True)
    for name in ("ViT-B-16-SigLIP", "ViT-B-16-quickgelu", "EVA02-B-16", "no such model"):
        assert not external_source(name, fresh=False)
