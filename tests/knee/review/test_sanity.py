from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from knee.review.sanity import rank_correlation, sanity_figure, structural_similarity, weight_randomisation
from knee.task import Grading


class Learned(nn.Module):
    """Three grades by three convolutions; its maps depend on its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, images: Tensor) -> Grading:
        maps = self.head(self.body(images))
        return Grading(maps.mean((2, 3)), maps)


class Edges(Learned):
    """Maps that show the image whatever was learned, as some saliency methods' do."""

    def forward(self, images: Tensor) -> Grading:
        maps = nn.functional.avg_pool2d(images, 4).expand(-1, 3, -1, -1)
        return Grading(super().forward(images).logits, maps)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def test_maps_that_depend_on_the_weights_fall_apart(images):
    network = Learned()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    table = weight_randomisation(network, images, steps=3, batch=5)
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["share"].tolist()[-1] == 1 and table["share"].is_monotonic_increasing
    assert table["from_layer"].tolist() == ["none", "head", "body.2", "body.0"]
    assert table.loc[0, ["correlation", "ssim"]].tolist() == pytest.approx([1, 1])
    assert table["correlation"].iat[-1] < 0.5 and table["ssim"].iat[-1] < 0.7
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_is_kept_stays_and_does_not_count(images):
    """As the texts of a trained grader, which are computed once: shuffling them would change nothing."""

    class WithTexts(Learned):
        def __init__(self) -> None:
            super().__init__()
            self.texts = nn.Linear(500, 500)

    table = weight_randomisation(WithTexts(), images, steps=3, keep=("texts.",))
    assert table["from_layer"].tolist() == ["none", "head", "body.2", "body.0"]
    assert table["share"].iat[-1] == 1
    assert weight_randomisation(WithTexts(), images, steps=4)["from_layer"].iat[1] == "texts"


def test_maps_that_show_the_image_alone_are_found_out(images):
    table = weight_randomisation(Edges(), images, steps=3)
    assert table["correlation"].tolist() == pytest.approx([1] * 4)
    assert table["ssim"].tolist() == pytest.approx([1] * 4)


def test_the_same_seed_gives_the_same_table(images):
    one, other = (weight_randomisation(Learned(), images, steps=2, seed=3) for _ in range(2))
    assert one.equals(other)


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    one, other = (np.maximum(rng.normal(size=(4, 9, 9)), 0).astype(np.float32) for _ in range(2))
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one, other, strict=True)]
    assert rank_correlation(one, other) == pytest.approx(expected)
    assert rank_correlation(one, np.zeros_like(one)).tolist() == [0] * 4


def test_structural_similarity_of_equal_and_of_constant_maps():
    maps = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert structural_similarity(maps, maps) == pytest.approx([1, 1, 1])
    black, white = torch.zeros(1, 32, 32), torch.ones(1, 32, 32)
    assert structural_similarity(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-3)
    assert (structural_similarity(maps, 1 - maps) < 0.3).all()


def test_too_little_to_check_is_refused(images):
    with pytest.raises(ValueError, match="0 images"):
        weight_randomisation(Learned(), images[:0])
    with pytest.raises(ValueError, match="0 steps"):
        weight_randomisation(Learned(), images, steps=0)


def test_the_figure_has_a_mark_for_each_step(images):
    figure = sanity_figure(weight_randomisation(Learned(), images, steps=3))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "head", "body.2", "body.0"]
