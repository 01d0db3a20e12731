"""Embeddings of pairs: equal reports once, order kept; a planted mark in the images is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from image_text.batches import PairBatch
from image_text.config import ImageTextConfig
from image_text.contrastive import Contrastive
from image_text.embed import embed_images, embed_pairs, embed_reports, grade_texts, zero_shot
from image_text.reports import Reports
from image_text.text import HashedWords, encode
from image_text.train import build_towers, load_reports
from knee.data.prepare import load_knee_data
from knee.errors import NotFinite, UserError
from knee.grades import load_grade_set

Make = Callable[..., ImageTextConfig]
CPU = {"device": torch.device("cpu"), "precision": "fp32"}


def test_pairs_of_a_split(make_config: Make) -> None:
    config = make_config()
    data = load_knee_data(config.data, graded=False)
    reports = load_reports(config, data)
    network = build_towers(config, grades=5, fresh=True)
    rows = data.split.rows("train")
    reports.texts[rows[1]] = reports.texts[rows[0]]
    reports.texts[rows[2]] = -1
    pairs = embed_pairs(network, data, reports, rows, **CPU)
    kept = np.delete(rows, 2)
    assert len(pairs) == len(kept)
    assert len(pairs.texts) == len(kept) - 1
    assert pairs.text_of[0] == pairs.text_of[1]
    np.testing.assert_allclose(pairs.images, embed_images(network, data.loader(kept), **CPU))
    one = embed_reports(network, reports.tokens[kept[3:4]], **CPU)
    np.testing.assert_allclose(pairs.texts[pairs.text_of[3]], one[0], atol=1e-6)
    with pytest.raises(UserError, match="0 images of this split have a report; at least two"):
        embed_pairs(network, data, Reports(reports.tokens, np.full_like(reports.texts, -1), 0, 0), rows, **CPU)


def test_embeddings_that_are_not_finite(make_config: Make) -> None:
    config = make_config()
    data = load_knee_data(config.data, graded=False)
    network = build_towers(config, grades=5, fresh=True)
    with torch.no_grad():
        network.image_head.weight.fill_(float("nan"))
    with pytest.raises(NotFinite):
        embed_images(network, data.loader(np.arange(3)), **CPU)


def planted(rng: np.random.Generator, count: int, *, shuffled: bool = False) -> PairBatch:
    """Noise with a mark in the first corner: stripes along, stripes across, squares or a patch, which the report names."""
    corners = rng.integers(0, 4, count)
    images = rng.random((count, 1, 48, 48)).astype(np.float32) * 0.5
    place = np.arange(24) // 4 % 2
    marks = [
        place[:, None] + 0 * place,
        place + 0 * place[:, None],
        place ^ place[:, None],
        0 * place + 1 + 0 * place[:, None],
    ]
    for image, corner in zip(images, corners, strict=True):
        image[0, :24, :24] = marks[corner]
    texts = rng.permutation(corners) if shuffled else corners
    tokens = encode([f"mark {'abcd'[text]}" for text in texts], buckets=256, length=4)[0]
    moved = torch.from_numpy(images)
    numbers = torch.from_numpy(texts)
    return PairBatch(moved, moved, torch.from_numpy(tokens).long(), numbers, torch.arange(count), numbers)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_planted_mark_is_found_and_shuffled_pairs_are_at_chance(make_config: Make, shuffled: bool) -> None:
    torch.manual_seed(1)
    config, rng = make_config(), np.random.default_rng(0)
    task = Contrastive(build_towers(config, grades=5, fresh=True), contrast=config.contrast, decay=0.9)
    optimizer = torch.optim.Adam([one for one in task.parameters() if one.requires_grad], lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        task.losses(planted(rng, 16, shuffled=shuffled), step).total.backward()
        optimizer.step()
        task.after_update(step)
    new = planted(rng, 200)
    names = encode([f"mark {letter}" for letter in "abcd"], buckets=256, length=4)[0]
    task.student.eval()
    with torch.no_grad():
        images = task.student.embed_image(new.student).numpy()
    right = (images @ embed_reports(task.student, names, **CPU).T).argmax(1) == new.grades.numpy()
    if shuffled:
        assert right.mean() < 0.45
    else:
        assert right.mean() > 0.9


def test_zero_shot_grades_by_the_nearest_mean_phrase() -> None:
    texts = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    found = zero_shot(np.array([[1.0, 0.0], [0.0, 1.0]]), texts, np.array([0, 0, 1]), 2)
    assert found.argmax(1).tolist() == [0, 1]
    assert found[0, 0] == pytest.approx(3 / np.sqrt(10))


def test_prompts_of_a_grade_set_are_masked_like_reports() -> None:
    prompts = grade_texts(load_grade_set("kl"), vocabulary=HashedWords(256), length=24, grade_words="")
    assert prompts is not None
    assert set(prompts.grades.tolist()) == {0, 1, 2, 3, 4}
    assert len(np.unique(prompts.tokens, axis=0)) > 5
