"""The linear probe: the same answers as scikit-learn's, as a grader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clip_koa.probe import embeddings_of, fit_linear_probe
from knee.errors import UserError


@pytest.fixture
def images():
    """Sixty images of three brightness patterns."""
    generator = torch.Generator().manual_seed(0)
    grades = torch.arange(60) % 3
    images = torch.rand(60, 1, 16, 16, generator=generator) * 0.3
    for number, grade in enumerate(grades.tolist()):
        images[number, :, :, 5 * grade : 5 * grade + 5] += 0.6
    return images, grades.numpy()


def test_probe_equals_scikit_learn(patch_grader, images):
    pixels, grades = images
    grader = patch_grader()
    embeddings = embeddings_of(grader, pixels.split(16))
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    probe = fit_linear_probe(grader, embeddings, grades, count=5).eval()
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    reference = LogisticRegression(max_iter=2000).fit(scaled, grades)
    probabilities = probe(pixels).logits.softmax(1).detach().numpy()
    assert probabilities[:, :3] == pytest.approx(reference.predict_proba(scaled), abs=2e-3)
    assert (probabilities[:, 3:] == 0).all()  # grades without an image
    assert probe(pixels).class_maps.shape == (60, 5, 2, 2)


def test_probe_of_two_classes(patch_grader, images):
    pixels, grades = images
    grader = patch_grader()
    embeddings = embeddings_of(grader, [pixels])
    two = (grades == 2).astype(np.int64)
    probe = fit_linear_probe(grader, embeddings, two, count=2)
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    reference = LogisticRegression(max_iter=2000).fit(scaled, two)
    found = probe(pixels).logits.softmax(1).detach().numpy()
    assert found == pytest.approx(reference.predict_proba(scaled), abs=2e-3)


def test_images_of_one_grade_are_refused(patch_grader):
    with pytest.raises(UserError, match=r"the 4 labeled training images all have grade 2, .*\(data\.labeled_fraction"):
        fit_linear_probe(patch_grader(), np.eye(4, dtype=np.float32), np.full(4, 2), count=5)


def test_embedding_takes_no_gradient(patch_grader, images):
    grader = patch_grader().train()
    embeddings_of(grader, [images[0]])
    assert all(parameter.grad is None for parameter in grader.parameters())
    assert not grader.training
