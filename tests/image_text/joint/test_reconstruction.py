"""Masked reconstruction: hidden pixels, words and cells do not reach the guess of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from image_text.batches import PairBatch
from image_text.joint.model import JointModel
from image_text.joint.reconstruction import cell_loss, hide, patch_loss, patch_targets, word_loss
from image_text.text import MASK, PAD, START

GRID = (6, 6)


def test_hidden_pixels_get_no_gradient_and_hidden_words_are_masks(model: JointModel, batch: PairBatch) -> None:
    torch.manual_seed(3)
    images = batch.student.clone().requires_grad_()
    there = ~batch.numbers.isnan() | (batch.categories >= 0)
    hidden = hide(images, batch.tokens, there, GRID, share=0.4)
    assert hidden.words.any()
    assert (hidden.tokens[hidden.words] == MASK).all()
    assert not (hidden.words & (batch.tokens <= MASK)).any()
    assert torch.equal(hidden.tokens[~hidden.words], batch.tokens[~hidden.words])
    seen = torch.ones(6, 3, dtype=torch.bool)
    found = model.fuse(model.maps(hidden.images), hidden.tokens, batch.numbers, batch.categories, seen, hidden.cells)
    loss = patch_loss(found, patch_targets(images, GRID), hidden.patches)
    loss.backward()
    assert images.grad is not None
    covered = F.interpolate(hidden.patches.reshape(6, 1, 6, 6).float(), size=(48, 48)) > 0
    assert float(images.grad[covered].abs().max()) == 0
    assert float(images.grad[~covered].abs().max()) > 0


@torch.no_grad()
def test_a_hidden_cell_or_word_does_not_reach_its_guess(model: JointModel, batch: PairBatch) -> None:
    seen = torch.ones(6, 3, dtype=torch.bool)
    cells = torch.zeros(6, 2, dtype=torch.bool)
    cells[0, 0] = True
    other = batch.numbers.clone()
    other[0, 0] = 3.0
    maps = model.maps(batch.student)
    one, two = (
        model.fuse(maps, batch.tokens, numbers, batch.categories, seen, cells) for numbers in (batch.numbers, other)
    )
    torch.testing.assert_close(one.numbers, two.numbers)
    torch.testing.assert_close(one.logits, two.logits)


def test_targets_are_mean_grays_of_each_place() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    targets = patch_targets(F.interpolate(images, scale_factor=12), (4, 4))
    assert targets.shape == (1, 16, 16)
    torch.testing.assert_close(targets[0], images.reshape(16, 1).expand(16, 16))


def test_nothing_hidden_costs_nothing(model: JointModel, batch: PairBatch) -> None:
    seen = torch.ones(6, 3, dtype=torch.bool)
    found = model.fuse(model.maps(batch.student), batch.tokens, batch.numbers, batch.categories, seen)
    none = torch.zeros(6, 48, dtype=torch.bool)
    assert float(word_loss(model, found, batch.tokens, none).detach()) == 0
    assert float(patch_loss(found, patch_targets(batch.student, GRID), none[:, :36]).detach()) == 0
    assert float(cell_loss(found, batch.numbers, batch.categories, none[:, :2]).detach()) == 0
    assert (PAD, START) == (0, 1)
