"""Mirrored pairs: the mean of two answers, and that an image and its mirror image get the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from knee.nn.flips import FlipAveraged, mean_logits
from knee.task import Grading


class LeftSide(nn.Module):
    """Grades by the left half of an image alone; its class maps are two multiples of the image."""

    def forward(self, images: Tensor) -> Grading:
        left = images[..., : images.shape[3] // 2].mean((1, 2, 3))
        return Grading(torch.stack([left, 1 - 2 * left, left**2], 1), torch.cat([images, 2 * images, -images], 1))


def soft(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "grades"), [(1, 2), (4, 3), (30, 5)])
def test_mean_logits_are_those_of_the_mean_probabilities(batch: int, grades: int) -> None:
    a, b = 6 * soft((batch, grades), 7), 6 * soft((batch, grades), 8)
    found, wanted = mean_logits(a, b), (a.double().softmax(1) + b.double().softmax(1)) / 2
    torch.testing.assert_close(found.double().exp(), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(mean_logits(b, a), found)
    torch.testing.assert_close(mean_logits(a, a), a.log_softmax(1))
    torch.testing.assert_close(
        mean_logits(a + 3, b - 2), found, rtol=1e-4, atol=1e-5
    )  # logits are known up to a constant


def test_mean_logits_of_opposite_certain_answers_are_two_halves_without_overflow() -> None:
    a = torch.tensor([[1000.0, 0.0, 0.0]])
    torch.testing.assert_close(mean_logits(a, a.flip(1)).exp(), torch.tensor([[0.5, 0.0, 0.5]]))


def test_a_flip_tta_answers_with_the_mean_of_both_sides() -> None:
    images, one = soft((4, 1, 6, 6), 1), LeftSide()
    found = FlipAveraged(one)(images)
    left, right = one(images).logits.softmax(1), one(images.flip(3)).logits.softmax(1)
    assert not torch.allclose(left, right)
    torch.testing.assert_close(found.logits.softmax(1), (left + right) / 2)
    # The map of LeftSide is of the pixel alone, so image and mirror image agree about every position.
    torch.testing.assert_close(found.class_maps, one(images).class_maps)


def test_a_mirror_image_gets_the_same_answer_and_the_mirrored_maps() -> None:
    class Uneven(LeftSide):
        def forward(self, images: Tensor) -> Grading:
            logits, maps = super().forward(images)
            return Grading(logits, maps * torch.arange(images.shape[3]))

    images, pair = soft((3, 1, 5, 8), 2), FlipAveraged(Uneven())
    found, mirrored = pair(images), pair(images.flip(3))
    torch.testing.assert_close(mirrored.logits, found.logits)
    torch.testing.assert_close(mirrored.class_maps, found.class_maps.flip(3))
    assert not torch.allclose(found.class_maps, Uneven()(images).class_maps)
