import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from knee.attention import attention_mask
from knee.errors import UserError
from knee.evaluation.predictions import iterate_attention, predict
from knee.nn.flips import jensen_shannon
from knee.nn.padding import content_of
from knee.task import Grading


class Brightness(nn.Module):
    """Grades by where the brightest third is (left 0, middle 1, right 2) and shows the image itself as evidence."""

    def forward(self, images: Tensor) -> Grading:
        thirds = images.mean((1, 2)).unflatten(1, (3, -1)).mean(2)
        evidence = nn.functional.avg_pool2d(images, 2)
        return Grading(20 * thirds, evidence.repeat(1, 3, 1, 1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None])


def bars() -> tuple[Tensor, np.ndarray]:
    """Six images (12 px) with a bright bar in third 0, 0, 1, 2, 2, and nowhere; and their bars as masks."""
    images = torch.zeros(6, 1, 12, 12, dtype=torch.uint8)
    for number, third in enumerate((0, 0, 1, 2, 2)):
        images[number, 0, 4:8, 4 * third : 4 * third + 4] = 255
    return images, (images[:, 0] > 0).numpy().astype(np.uint8)


def batches(images: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [
        (images[start : start + size], torch.arange(len(images))[start : start + size])
        for start in range(0, len(images), size)
    ]


class TestPredict:
    def test_grades_and_numbers(self) -> None:
        images, masks = bars()
        found = predict(Brightness(), batches(images), masks=masks)
        assert found.rows.tolist() == list(range(6))
        assert found.predicted.tolist() == [0, 0, 1, 2, 2, 0]
        assert found.probabilities.dtype == np.float32
        assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-6)
        assert found.entropy[5] == pytest.approx(math.log(3))
        assert found.map_maximum.tolist() == [1, 1, 2, 3, 3, 0]
        assert found.empty.tolist() == [False] * 5 + [True]
        assert (found.iou[:5] > 0.6).all() and math.isnan(found.iou[5])

    def test_the_median_is_called_and_attended(self) -> None:
        class Torn(nn.Module):
            """0.40, 0.25, 0.35 for the grades, and mirrored images surely 2. Attends to a row for each grade."""

            def forward(self, images: Tensor) -> Grading:
                shares = torch.tensor([[0.40, 0.25, 0.35], [0.05, 0.25, 0.70]]).log()
                left = images[:, 0, :, :6].mean((1, 2)) > images[:, 0, :, 6:].mean((1, 2))
                return Grading(shares[(~left).long()], torch.eye(3)[None, :, :, None].expand(len(images), 3, 3, 3))

        images = torch.full((2, 1, 12, 12), 60, dtype=torch.uint8)
        images[:, :, :, :6] = 200
        for decision, grade in (("likeliest", 0), ("median", 1)):
            found = predict(Torn(), batches(images), decision=decision, flip=True)
            assert found.predicted.tolist() == [grade, grade]
            assert found.flip_changed is not None and found.flip_changed.all()
            (batch,) = iterate_attention(Torn(), batches(images), decision=decision, evidence=True)
            assert batch.attention.sum((0, 2)).argmax() // 4 == grade, "the row of the called grade"
            assert batch.against is not None and batch.against.tolist() == [2 if grade == 0 else 0] * 2

    def test_uint8_and_float_images_are_the_same(self) -> None:
        images, _ = bars()
        one, other = predict(Brightness(), batches(images)), predict(Brightness(), batches(images.float() / 255, 3))
        assert (one.probabilities == other.probabilities).all()

    def test_masks_are_taken_by_row_and_only_where_they_are(self) -> None:
        images, masks = bars()
        shuffled = [(images[[4, 2]], torch.tensor([4, 2])), (images[[0]], np.array([0]))]
        has_mask = np.array([True, False, True, False, False, False])
        found = predict(Brightness(), shuffled, masks=masks, has_mask=has_mask)
        assert found.rows.tolist() == [4, 2, 0]
        assert math.isnan(found.iou[0]) and (found.iou[1:] > 0.6).all()

    def test_iou_is_that_of_the_predicted_grade(self) -> None:
        class TwoMaps(nn.Module):
            def forward(self, images: Tensor) -> Grading:
                maps = torch.zeros(len(images), 3, 4, 4)
                maps[:, 1, :, :2] = 1
                maps[:, 2, :, 2:] = 1
                return Grading(torch.tensor([[0.0, 5.0, 1.0]]).repeat(len(images), 1), maps)

        masks = np.zeros((1, 4, 4), dtype=np.uint8)
        masks[:, :, :2] = 1
        assert predict(TwoMaps(), [(torch.zeros(1, 1, 4, 4), [0])], masks=masks).iou.tolist() == [1]

    def test_flip_of_a_symmetric_and_of_an_asymmetric_image(self) -> None:
        images, _ = bars()
        found = predict(Brightness(), batches(images), flip=True)
        assert found.flip_changed is not None and found.flip_divergence is not None
        assert found.flip_changed.tolist() == [True, True, False, True, True, False]
        assert found.flip_divergence[[2, 5]] == pytest.approx(0, abs=1e-7)
        assert (found.flip_divergence[:2] > 0.5).all() and (found.flip_divergence <= math.log(2) + 1e-9).all()
        assert predict(Brightness(), batches(images)).flip_changed is None

    def test_a_network_is_graded_in_eval_mode_and_given_back_as_it_was(self) -> None:
        class Normalised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trained, self.frozen = nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval()
                self.seen: list[bool] = []

            def forward(self, images: Tensor) -> Grading:
                self.seen.append(self.trained.training)
                return Brightness()(self.frozen(self.trained(images)))

        network = Normalised()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        predict(network, batches(bars()[0]))
        assert network.seen == [False, False]
        assert network.trained.training and not network.frozen.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_no_graph_is_kept(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 1), Brightness())
        batch = next(iter(iterate_attention(network, batches(bars()[0]))))
        assert not batch.attention.requires_grad and not batch.probabilities.requires_grad
        assert torch.is_grad_enabled()

    def test_iterates_with_the_maps_of_the_attention_module(self) -> None:
        images, _ = bars()
        network = Brightness()
        for batch in iterate_attention(network, batches(images), sharpness=30, threshold=0.3):
            maps = network(batch.images).class_maps
            content = content_of(batch.images)
            expected = attention_mask(maps, batch.predicted, (12, 12), sharpness=30, threshold=0.3, content=content)
            assert torch.equal(batch.mask, expected)
            assert batch.attention.min() >= 0 and batch.attention.max() <= 1

    def test_half_precision_gives_single_precision_probabilities(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 1), Brightness())
        one = predict(network, batches(bars()[0]), precision=torch.bfloat16)
        other = predict(network, batches(bars()[0]))
        assert one.probabilities.dtype == np.float32
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.05)

    def test_refuses_what_is_not_finite_naming_the_row(self) -> None:
        images = bars()[0].float()
        images[3] = torch.nan
        with pytest.raises(UserError, match=r"1 of 2 images \(first: row 3\).*earlier checkpoint"):
            predict(Brightness(), batches(images, 2))

    def test_refuses_nothing_and_other_shapes(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            predict(Brightness(), [])
        with pytest.raises(ValueError, match=r"must be \(B, 1, S, S\)"):
            predict(Brightness(), [(torch.zeros(2, 3, 12, 12), [0, 1])])
        with pytest.raises(ValueError, match="one size"):
            predict(Brightness(), batches(bars()[0]), masks=np.ones((6, 9, 9)))

    def test_jensen_shannon_against_scipy_and_its_bounds(self) -> None:
        first, second = torch.rand(2, 30, 5, dtype=torch.float64).softmax(-1)
        expected = jensenshannon(first.numpy(), second.numpy(), axis=1) ** 2
        assert jensen_shannon(first, second).numpy() == pytest.approx(expected)
        assert jensen_shannon(first, second).tolist() == pytest.approx(jensen_shannon(second, first).tolist())
        one_hot = torch.eye(2)
        assert jensen_shannon(one_hot, one_hot.flip(0)).tolist() == pytest.approx([math.log(2)] * 2)
        assert jensen_shannon(one_hot, one_hot).tolist() == [0, 0]
