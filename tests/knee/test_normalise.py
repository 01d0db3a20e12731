"""Each image by its own mean and deviation, or all by the same."""

import pytest
import torch

from knee.normalise import LEAST_DEVIATION, normalised

MEAN, STD = torch.tensor(0.5), torch.tensor(0.25)


@pytest.fixture
def images() -> torch.Tensor:
    return 0.2 + 0.5 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_each_image_has_zero_mean_and_unit_deviation(images):
    found = normalised(images, MEAN, STD, "image")
    assert found.mean((1, 2, 3)).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert found.std((1, 2, 3), correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_exposure_changes_nothing_and_other_images_do_not_matter(images):
    exposure = torch.tensor([0.6, 1.0, 1.3], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(
        normalised(images * exposure + 0.05, MEAN, STD, "image"), normalised(images, MEAN, STD, "image")
    )
    torch.testing.assert_close(normalised(images[:1], MEAN, STD, "image"), normalised(images, MEAN, STD, "image")[:1])


def test_noise_of_an_empty_image_is_not_blown_up(images):
    empty = 0.3 + 1e-3 * (images - 0.45)
    assert normalised(empty, MEAN, STD, "image").abs().max() < 1e-3 * 0.5 / LEAST_DEVIATION
    assert (normalised(torch.full((1, 1, 8, 8), 0.7), MEAN, STD, "image").abs() < 1e-5).all()


def test_fixed_is_the_same_for_all(images):
    torch.testing.assert_close(normalised(images, MEAN, STD, "fixed"), (images - 0.5) * 4)
