"""The towers: unit length, padding, frozen encoders, and no way from a report to an image's embedding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from image_text.config import ImageTextConfig
from image_text.text import PAD, encode
from image_text.towers import TwoTowers, projection_head
from image_text.train import build_towers


@pytest.fixture(scope="module")
def towers(make_config: Callable[..., ImageTextConfig]) -> TwoTowers:
    torch.manual_seed(0)
    return build_towers(make_config(), grades=5, fresh=True).eval()


def tokens(*texts: str) -> torch.Tensor:
    return torch.from_numpy(encode(texts, buckets=256, length=48)[0]).long()


@torch.no_grad()
def test_an_images_embedding_sees_the_image_alone(towers: TwoTowers) -> None:
    images = torch.rand(64, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    many, reports = towers.embed_image(images), tokens(*(f"word{number}" for number in range(64)))
    for other in (reports, reports.flip(0), torch.full_like(reports, PAD)):
        assert torch.equal(towers(images, other)[0], many)
    single = torch.cat([towers.embed_image(images[number : number + 1]) for number in range(8)])
    torch.testing.assert_close(single, many[:8], atol=2e-6, rtol=0)
    mates = images.clone()
    mates[1:] = 0.3
    torch.testing.assert_close(towers.embed_image(mates)[0], many[0], atol=2e-6, rtol=0)


@torch.no_grad()
def test_a_reports_embedding_does_not_depend_on_longer_batch_mates(towers: TwoTowers) -> None:
    one = towers.embed_report(tokens("mild narrowing"))
    two = towers.embed_report(tokens("mild narrowing", "a much longer report about osteophytes and cysts"))
    torch.testing.assert_close(one[0], two[0], atol=2e-6, rtol=0)
    assert not torch.allclose(two[0], two[1])


@torch.no_grad()
def test_embeddings_have_unit_length_and_an_absent_report_is_finite(towers: TwoTowers) -> None:
    found = towers.embed_report(tokens("narrowing", ""))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert found.isfinite().all()


def test_frozen_encoders_have_no_gradient_and_stay_in_eval_mode(make_config: Callable[..., ImageTextConfig]) -> None:
    frozen = build_towers(
        make_config(**{"contrast.train_image": False, "contrast.train_text": False}), grades=5, fresh=True
    ).train()
    assert not frozen.image.training
    assert not frozen.text.training
    images, texts, scale = frozen(torch.rand(2, 1, 48, 48), tokens("one", "two"))
    (scale * (images * texts).sum()).backward()
    trained = {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    assert trained == {"image_head.weight", "text_head.weight", "log_scale"}


def test_heads() -> None:
    linear, other = projection_head("linear", 6, 3), projection_head("nonlinear", 6, 3)
    assert [tuple(parameter.shape) for parameter in linear.parameters()] == [(3, 6)]
    assert [tuple(parameter.shape) for parameter in other.parameters()] == [(3, 6), (3, 3)]
    assert float(linear(torch.zeros(1, 6)).detach().abs().sum()) == 0


def test_the_classifier_waits_for_a_grader_and_the_scale_has_no_decay(towers: TwoTowers) -> None:
    assert not any(parameter.requires_grad for parameter in towers.image.classifier.parameters())
    assert [id(parameter) for parameter in towers.undecayed()] == [id(towers.log_scale)]
