"""Scale and similarities: bounds, half precision, and what the maps decompose."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from clip_koa.head import ImageFeatures, SimilarityScale, similarities, similarity_maps
from knee.errors import UserError


def drawn(seed: int = 0) -> tuple[ImageFeatures, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(3, 16, 4, 5, generator=generator)
    return ImageFeatures(patches.mean((2, 3)), patches), torch.randn(5, 16, generator=generator)


def test_similarities_are_scaled_cosines():
    features, texts = drawn()
    expected = torch.stack([cosine_similarity(features.pooled, text[None]) for text in texts], 1)
    assert torch.allclose(similarities(features.pooled, texts, torch.tensor(7.0)), 7 * expected, atol=1e-5)


def test_maps_of_pooled_towers_average_to_the_logits():
    features, texts = drawn()
    scale = torch.tensor(20.0)
    logits = similarities(features.pooled, texts, scale)
    plain = similarity_maps(features, texts, scale, pooled_is_mean=True, against_mean=False)
    assert torch.allclose(plain.mean((2, 3)), logits, atol=1e-4)


def test_against_the_mean_changes_no_probability():
    features, texts = drawn()
    scale = torch.tensor(20.0)
    maps = similarity_maps(features, texts, scale, pooled_is_mean=True)
    unit = torch.nn.functional.normalize(texts, dim=1)
    shift = similarities(features.pooled, texts, scale) - maps.mean((2, 3))
    assert torch.allclose(shift, shift[:, :1].expand(-1, 5), atol=1e-4)  # the same number for every grade
    assert maps.mean(1).abs().max() <= 1e-4
    assert unit.mean(0).norm() > 0.1  # so the test tests something


def test_maps_of_class_token_towers_are_patch_cosines():
    features, texts = drawn()
    maps = similarity_maps(features, texts, torch.tensor(3.0), pooled_is_mean=False, against_mean=False)
    assert maps[1, 2, 3, 4].item() == pytest.approx(
        3 * cosine_similarity(features.patches[1, :, 3, 4], texts[2], dim=0).item(), abs=1e-5
    )
    assert maps.abs().max() <= 3.0001


def test_a_zero_image_is_finite():
    zero = ImageFeatures(torch.zeros(1, 16, requires_grad=True), torch.zeros(1, 16, 2, 2, requires_grad=True))
    _, texts = drawn()
    for pooled in (True, False):
        maps = similarity_maps(zero, texts, torch.tensor(100.0), pooled_is_mean=pooled)
        (maps.sum() + similarities(zero.pooled, texts, torch.tensor(100.0)).sum()).backward()
        assert maps.isfinite().all()
    assert zero.patches.grad is not None
    assert zero.patches.grad.isfinite().all()
    assert zero.pooled.grad is not None
    assert zero.pooled.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_and_autocast_give_single(dtype):
    features, texts = drawn()
    half = ImageFeatures(features.pooled.to(dtype), features.patches.to(dtype))
    rounded = ImageFeatures(half.pooled.float(), half.patches.float())
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = similarities(half.pooled, texts, scale)
        maps = similarity_maps(half, texts, scale, pooled_is_mean=True)
    assert logits.dtype == maps.dtype == torch.float32
    assert torch.equal(logits, similarities(rounded.pooled, texts, scale))
    assert torch.equal(maps, similarity_maps(rounded, texts, scale, pooled_is_mean=True))
    # Against full precision, only the rounding of the inputs is left: 100 · 2⁻⁸ and some.
    assert (logits - similarities(features.pooled, texts, scale)).abs().max() < (0.2 if dtype == torch.float16 else 1.5)


def test_learned_scale_starts_where_told_and_gets_a_gradient():
    scale = SimilarityScale()
    value = scale()
    value.backward()
    assert value.item() == pytest.approx(1 / 0.07)
    assert scale.log_scale.grad is not None
    assert scale.log_scale.grad.item() == pytest.approx(1 / 0.07)
    assert SimilarityScale("learned", start=100.0)().item() == pytest.approx(100)


def test_an_overflowing_scale_is_clamped_and_can_come_back():
    scale = SimilarityScale()
    with torch.no_grad():
        scale.log_scale.fill_(50.0)  # e⁵⁰ is beyond half precision, and near the end of single
    scale.eval()
    assert scale().item() == pytest.approx(100)
    assert scale.log_scale.item() == 50.0  # evaluation changes nothing
    scale.train()
    value = scale()
    value.backward()
    assert value.half().isfinite()
    assert scale.log_scale.item() == pytest.approx(math.log(100))
    assert scale.log_scale.grad is not None
    assert scale.log_scale.grad.item() == pytest.approx(100)  # not stuck at the bound


def test_fixed_and_cosine_scales_have_no_parameter():
    assert list(SimilarityScale("fixed", start=30).parameters()) == []
    assert SimilarityScale("fixed", start=30)().item() == pytest.approx(30)
    assert SimilarityScale("cosine", start=30)().item() == 1.0
    assert "log_scale" in SimilarityScale("fixed").state_dict()


@pytest.mark.parametrize("start", [0.0, -1.0, 101.0, float("nan")])
def test_refused_scales(start):
    with pytest.raises(UserError, match=r"outside \(0, 100\]"):
        SimilarityScale("learned", start=start)


def test_refused_kind():
    with pytest.raises(UserError, match="write one of learned, fixed, cosine"):
        SimilarityScale("learnt")  # type: ignore[arg-type]
