"""Text-headed graders: towers that fit together, embeddings from files, loading without weights."""

from __future__ import annotations

import shutil

import torch

from clip_koa.build import build_clip_grader, read_text_embeddings
from clip_koa.config import ClipConfig
from knee.grades import load_grade_set

from .conftest import refusal

KL = load_grade_set("kl")


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
