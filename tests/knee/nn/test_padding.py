"""Padding: found between the image's edges, unseen by networks that do not know of it, never pooled, never attended."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmt.network import GradingNetwork
from knee.attention import attention_map, attention_mask
from knee.batches import Draw
from knee.data.datasets import EvalImages, LabeledImages, TwoStreams, UnlabeledImages, batch_to, collate, eval_loader
from knee.data.views import Views, no_views, strong_views
from knee.evaluation.predictions import iterate_attention
from knee.images.geometry import prepare
from knee.nn.flips import with_flipped
from knee.nn.padding import as_input, cell_weights, content_of, mark_padding, padded_content

SIZE = 48


def prepared(height: int, width: int, *, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """A random image prepared to a square (1, 1, S, S) uint8, and where its geometry puts content."""
    values = np.random.default_rng(seed).uniform(50, 200, (height, width))
    image, geometry = prepare(values, SIZE)
    inside = np.zeros((SIZE, SIZE), bool)
    geometry.content(inside)[:] = True
    return torch.from_numpy(image)[None, None], inside


class ConvolutionOnly(nn.Module):
    """A backbone of one convolution with stride 8 whose output is easy to compute by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 8, stride=8)

    def forward_intermediates(self, images: Tensor, **_: object) -> list[Tensor]:
        return [self.convolution(images)]


def network() -> GradingNetwork:
    torch.manual_seed(0)
    return GradingNetwork(ConvolutionOnly(), features=4, grades=3, mean=0.0, std=1.0).eval()


@pytest.mark.parametrize(("height", "width"), [(48, 20), (20, 48), (300, 128), (31, 90), (48, 48), (60, 60)])
def test_detected_content_is_that_of_the_geometry(height: int, width: int) -> None:
    image, inside = prepared(height, width)
    found = padded_content(image)[0].numpy()
    # The bars may be a pixel narrower where a border pixel is blended, never wider than the image allows.
    assert not (inside & ~found).any()
    assert (found & ~inside).sum() <= 2 * SIZE
    assert found.all() == (height == width)


def test_bars_of_one_side_or_of_two_pixels_are_the_images_own() -> None:
    image = torch.full((1, 1, 12, 12), 9, dtype=torch.uint8)
    image[..., :4] = 0
    assert padded_content(image).all()
    image[..., -2:] = 0
    assert padded_content(image).all()
    image[..., -4:] = 0
    assert padded_content(image)[0].sum() == 12 * 4
    assert padded_content(torch.zeros_like(image)).all()


def test_marked_padding_equals_black_for_every_other_reader() -> None:
    image, _ = prepared(20, 48)
    marked = as_input(image)
    assert torch.equal(marked, image.float() / 255)
    assert torch.equal(content_of(marked), padded_content(image))
    assert torch.equal(content_of(marked.flip(3)), padded_content(image).flip(2))
    assert torch.equal(content_of(marked.half()), padded_content(image))
    assert content_of(torch.zeros(1, 1, 4, 4)).all()
    assert content_of(-torch.rand(1, 1, 4, 4) - 0.1).all()  # z-scores are not padding


def test_weights_are_exactly_one_without_padding() -> None:
    assert torch.equal(cell_weights(torch.rand(2, 1, 48, 48), (7, 5)), torch.ones(2, 1, 7, 5))


def test_weights_are_the_share_of_content_with_mean_one() -> None:
    content = torch.zeros(1, 8, 8)
    content[:, :, 1:7] = 1  # cells of 2 × 2: half, whole, whole, half
    weights = cell_weights(mark_padding(torch.rand(1, 1, 8, 8), content), (4, 4))[0, 0]
    assert weights.mean() == 1
    assert torch.allclose(weights[0], torch.tensor([0.5, 1, 1, 0.5]) / 0.75)
    content[:, :, 6] = 0
    weights = cell_weights(mark_padding(torch.rand(1, 1, 8, 8), content), (4, 4))[0, 0]
    assert torch.allclose(weights[0], torch.tensor([0.5, 1, 1, 0]) / 0.625)
    narrow = torch.zeros(1, 8, 8)
    narrow[:, :, 4] = 1  # less than half of any cell: these cells are kept
    weights = cell_weights(mark_padding(torch.rand(1, 1, 8, 8), narrow), (2, 2))[0, 0]
    assert torch.allclose(weights, torch.tensor([[0.0, 2.0], [0.0, 2.0]]))


def test_logits_are_pooled_over_the_image_alone() -> None:
    grader, (image, _) = network(), prepared(48, 16)
    grading = grader(as_input(image))
    alone = grader(as_input(image)[..., 16:32])
    assert torch.allclose(grading.logits, alone.logits, atol=1e-6)
    assert torch.equal(grading.class_maps[..., :2], torch.zeros(1, 3, 6, 2))
    assert torch.equal(grading.class_maps[..., 4:], torch.zeros(1, 3, 6, 2))
    bias = grader.classifier.bias
    assert torch.allclose(grading.logits, grading.class_maps.mean((2, 3)) + bias, atol=1e-6)


def test_attention_is_zero_in_the_padding_and_reaches_one_in_the_image() -> None:
    grader, (image, inside) = network(), prepared(48, 30)
    loader = eval_loader(EvalImages(image[0].numpy(), [0]), batch_size=1)
    (found,) = iterate_attention(grader, loader)
    padding = ~padded_content(image)
    assert padding.sum() >= 48 * 16
    assert found.attention[padding].abs().max() == 0
    assert found.attention.max() == 1
    assert inside[found.attention[0].numpy() == 1].all()


def test_content_limits_map_and_mask_and_passes_no_gradient_outside() -> None:
    maps = torch.rand(1, 2, 3, 3, requires_grad=True)
    content = torch.zeros(1, 6, 6, dtype=torch.bool)
    content[:, :, 4:] = True  # the last of three columns of cells
    x = attention_map(maps, torch.tensor([1]), (6, 6), content=content)
    f = attention_mask(maps, torch.tensor([1]), (6, 6), content=content)
    assert x[~content].abs().max() == 0
    assert x.max() == 1
    assert f[~content].max() < 1e-15
    x.sum().backward()
    assert maps.grad is not None
    assert maps.grad[0, 1, :, 0].abs().max() == 0
    assert maps.grad[0, 0].abs().max() == 0


def test_training_views_carry_padding_along_with_the_geometry() -> None:
    image, _ = prepared(48, 24)
    square, _ = prepared(48, 48, seed=1)
    images = np.stack([image[0, 0].numpy(), square[0, 0].numpy()])
    config = strong_views()
    streams = TwoStreams(
        LabeledImages(images, np.array([0]), np.array([1])),
        UnlabeledImages(images, np.array([1])),
        Views(config, SIZE),
        seed=0,
    )
    items = [streams[Draw("labeled", position, 0)] for position in range(8)] + [streams[Draw("unlabeled", 8, 0)]]
    batch = batch_to(collate(items), "cpu")
    content = content_of(batch.student)
    assert torch.equal(content, content_of(batch.teacher))
    assert content[8].all()
    shares = content[:8].float().mean((1, 2))
    assert ((shares > 0.35) & (shares < 0.65)).all()
    assert not len(batch.content)
    unpadded = collate([streams[Draw("unlabeled", 0, 0)]])
    assert not len(unpadded.content)


def test_flip_of_an_unaugmented_padded_batch_keeps_its_padding() -> None:
    image, _ = prepared(48, 24)
    streams = TwoStreams(
        LabeledImages(image[0].numpy(), np.array([0]), np.array([1])),
        UnlabeledImages(image[0].numpy(), np.array([], dtype=np.int64)),
        Views(no_views(), SIZE),
        seed=0,
    )
    batch = batch_to(collate([streams[Draw("labeled", 0, 0)]]), "cpu")
    assert torch.equal(batch.student, as_input(image))
    assert torch.equal(content_of(batch.student), padded_content(image))
    plain, flipped = with_flipped(network(), batch.student)
    assert (plain.class_maps == 0).sum() == (flipped.class_maps == 0).sum() > 0
