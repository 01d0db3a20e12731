"""The evidence map: the gradient of the margin of a grader that is known by hand, smoothed and scaled."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmt.network import build_network
from knee.data.datasets import EvalImages, eval_loader
from knee.evaluation.evidence import BLUR, evidence_maps, gaussian_blur
from knee.evaluation.predictions import iterate_attention
from knee.nn.padding import content_of, mark_padding
from knee.task import Grading

SIZE = 32


class Linear(nn.Module):
    """Logits z_k = Σ w_k · x with known weights (K, S, S)."""

    def __init__(self, weights: Tensor, *, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = torch.zeros(len(weights)) if bias is None else bias

    def forward(self, images: Tensor) -> Grading:
        logits = torch.einsum("kij,bij->bk", self.weights, images[:, 0]) + self.bias
        return Grading(logits, self.weights[None].expand(len(images), -1, -1, -1))


def weights(grades: int = 3) -> Tensor:
    return torch.randn(grades, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / SIZE


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_blur_is_opencvs_with_nothing_outside() -> None:
    values = torch.rand(2, 1, 20, 30)
    deviation = 1.7
    reach = round(3 * deviation)
    for blurred, one in zip(gaussian_blur(values, deviation)[:, 0], values[:, 0], strict=True):
        kernel = (2 * reach + 1, 2 * reach + 1)
        expected = cv2.GaussianBlur(one.numpy(), kernel, deviation, borderType=cv2.BORDER_CONSTANT)
        assert np.allclose(blurred.numpy(), expected, atol=1e-5)
    point = torch.zeros(1, 1, 15, 15)
    point[0, 0, 7, 7] = 1
    assert gaussian_blur(point, 1.0).sum() == pytest.approx(1)


def test_map_of_a_linear_grader_is_the_difference_of_its_weights() -> None:
    known = weights()
    found = evidence_maps(Linear(known), images())
    order = torch.einsum("kij,bij->bk", known, images()[:, 0]).argsort(1, descending=True)
    assert torch.equal(found.against, order[:, 1])
    for number, (first, second) in enumerate(order[:, :2].tolist()):
        slope = (known[first] - known[second]).abs()
        expected = gaussian_blur(slope[None, None], BLUR * SIZE)[0, 0]
        assert torch.allclose(found.maps[number], expected / expected.max(), atol=1e-5)
    assert torch.equal(found.maps.amax((1, 2)), torch.ones(4))


def test_what_two_grades_share_is_not_evidence_between_them() -> None:
    known = torch.zeros(3, SIZE, SIZE)
    known[1:, :8, :8] = 1.0  # speaks for grades 1 and 2 alike
    known[2, 20:24, 20:24] = 0.5  # tells them apart
    found = evidence_maps(Linear(known), torch.full((1, 1, SIZE, SIZE), 0.5))
    assert found.grading.logits.argmax(1).tolist() == [2]
    assert found.against.tolist() == [1]
    assert found.maps[0, :12, :12].max() < 1e-6
    row, column = divmod(int(found.maps[0].argmax()), SIZE)
    assert 20 <= row < 24
    assert 20 <= column < 24


def test_nothing_in_the_padding() -> None:
    content = torch.ones(4, SIZE, SIZE)
    content[:, :, :9] = 0
    padded = mark_padding(images(), content)
    found = evidence_maps(Linear(weights()), padded)
    assert torch.equal(content_of(padded), content.bool())
    assert found.maps[:, :, :9].max() == 0
    assert torch.equal(found.maps.amax((1, 2)), torch.ones(4))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_leaves_no_gradient_behind_and_works_in_any_mode(context: type) -> None:
    network = build_network("resnet10t", grades=3, image_size=SIZE, stride=16).eval()
    with context():
        found = evidence_maps(network, images())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not found.grading.logits.requires_grad
    assert not found.maps.requires_grad
    assert not network.training
    with torch.no_grad():
        assert torch.equal(found.grading.logits, network(images()).logits)


def test_grader_that_ignores_the_pixels_has_an_empty_map() -> None:
    constant = Linear(torch.zeros(3, SIZE, SIZE), bias=torch.tensor([0.0, 1.0, 2.0]))
    assert evidence_maps(constant, images()).maps.abs().max() == 0

    class Detached(Linear):
        def forward(self, images: Tensor) -> Grading:
            return Grading(*(part.detach() for part in super().forward(images)))

    assert evidence_maps(Detached(weights()), images()).maps.abs().max() == 0


def test_iteration_adds_the_maps_and_changes_nothing_else() -> None:
    network = build_network("resnet10t", grades=3, image_size=SIZE, stride=16)
    stored = (images() * 255).to(torch.uint8)[:, 0].numpy()
    loader = eval_loader(EvalImages(stored, range(4)), batch_size=3)
    for plain, more in zip(
        iterate_attention(network, loader), iterate_attention(network, loader, evidence=True), strict=True
    ):
        assert plain.evidence is None
        assert plain.against is None
        assert torch.equal(plain.probabilities, more.probabilities)
        assert torch.equal(plain.attention, more.attention)
        assert more.evidence is not None
        assert more.against is not None
        assert (more.against != more.predicted).all()
        assert torch.equal(more.evidence, evidence_maps(network.eval(), more.images).maps)
