"""Towers: freezing, counting text passes, agreement with open_clip, other image sizes."""

from __future__ import annotations

import copy

import pytest
import torch

from clip_koa.towers import FixedTexts, GradeTexts


def test_frozen_text_is_embedded_once(counting_texts):
    texts = counting_texts(trainable=False)
    texts.train()
    first = texts()
    for _ in range(5):
        assert torch.equal(texts(), first)
    assert texts.encoder.passes == 1
    assert not first.requires_grad
    assert not texts.encoder.training  # else dropout would have been kept in the embeddings
    assert first.norm(dim=1) == pytest.approx(torch.ones(5).numpy(), abs=1e-6)


def test_trainable_text_is_embedded_every_time_with_a_gradient(counting_texts):
    texts = counting_texts(trainable=True)
    texts().sum().backward()
    texts()
    assert texts.encoder.passes == 2
    assert texts.encoder.table.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("through", ["grader", "encoder"])
def test_loading_weights_embeds_again(counting_texts, through):
    texts, other = counting_texts(trainable=False), counting_texts(trainable=False)
    with torch.no_grad():
        other.encoder.table.weight.normal_(generator=torch.Generator().manual_seed(9))
    before = texts().clone()
    if through == "grader":
        texts.load_state_dict(other.state_dict())
    else:
        texts.encoder.load_state_dict(other.encoder.state_dict())
    assert not torch.equal(texts(), before)
    assert torch.equal(texts(), other())
    assert texts.encoder.passes == 2


def test_a_copy_keeps_its_own_embeddings(counting_texts):
    texts = counting_texts(trainable=False)
    texts()
    twin = copy.deepcopy(texts)
    twin.load_state_dict(counting_texts(trainable=False).state_dict())
    assert texts.is_current
    assert not twin.is_current
    assert list(dict(twin.named_buffers())) == list(dict(texts.named_buffers()))


def test_freezing_keeps_the_present_embeddings(counting_texts):
    texts = counting_texts(trainable=True).eval()
    expected = texts().detach()
    texts.freeze()
    texts.train()
    assert torch.equal(texts(), expected)
    texts()
    assert texts.encoder.passes == 2
    assert not any(parameter.requires_grad for parameter in texts.parameters())


def test_first_pass_in_inference_mode_can_be_trained_with(counting_texts):
    texts = counting_texts(trainable=False)
    with torch.inference_mode():
        texts()
    weight = torch.ones(5, 8, requires_grad=True)
    (texts() * weight).sum().backward()
    assert torch.equal(weight.grad, texts())


def test_phrases_of_a_grade_are_averaged_as_unit_vectors():
    encoder = torch.nn.Embedding(3, 2)
    encoder.weight.data = torch.tensor([[10.0, 0.0], [0.0, 0.1], [3.0, 4.0]])
    squeeze = torch.nn.Sequential(encoder, torch.nn.Flatten())
    texts = GradeTexts(squeeze, torch.tensor([[0], [1], [2]]), [0, 0, 1], embed_dim=2)
    assert torch.allclose(texts(), torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8]]))


def test_fixed_texts_keep_or_train():
    values = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert torch.allclose(FixedTexts(values)(), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert not FixedTexts(values).embeddings.requires_grad
    assert FixedTexts(values, trainable=True).embeddings.requires_grad


def test_weights_bring_their_phrases_with_them(counting_texts):
    trained = counting_texts(trainable=True).eval()
    blank = GradeTexts(copy.deepcopy(trained.encoder), torch.zeros(5, 77).long(), range(5), embed_dim=8).eval()
    assert not torch.allclose(blank(), trained())
    twin = copy.deepcopy(blank)
    for texts in (blank, twin):
        texts.load_state_dict(trained.state_dict())
        assert torch.equal(texts(), trained())
    assert torch.equal(blank.tokens, trained.tokens)


@pytest.mark.parametrize("shape", [(5, 70), (4, 77)])
def test_phrases_of_another_context_or_other_grades_are_refused(counting_texts, shape):
    texts = counting_texts(trainable=True)
    other = GradeTexts(texts.encoder, torch.zeros(shape).long(), range(shape[0]), embed_dim=8)
    with pytest.raises(RuntimeError, match=r"tokens|membership"):
        other.load_state_dict(texts.state_dict())


def test_embeddings_survive_what_restores_buffers(counting_texts):
    """A trial step or a skipped one puts all buffers back; the texts must not become those from before."""
    texts = counting_texts(trainable=False)
    before = [buffer.clone() for buffer in texts.buffers()]
    expected = texts().clone()
    for buffer, value in zip(texts.buffers(), before, strict=True):
        buffer.copy_(value)
    assert torch.equal(texts(), expected)
    assert texts.encoder.passes == 1


def test_frozen_text_is_embedded_in_full_precision(counting_texts):
    texts, other = counting_texts(trainable=False), counting_texts(trainable=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = texts()
    assert torch.equal(first, other())
