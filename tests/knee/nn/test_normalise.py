"""Each image by its own mean and deviation, each pixel by those around it, or all by the same."""

import pytest
import torch

from knee.nn.normalise import LEAST_DEVIATION, NEIGHBOURHOOD, normalised

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


def gaussian_mean(values, deviation):
    """The mean around every pixel, from its definition; (H, W) float64."""
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in values.shape))
    weights = torch.exp(
        -(torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / (2 * deviation**2)
    )
    return (weights / weights.sum(1, keepdim=True) @ values.ravel()).reshape(values.shape)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_local_is_the_z_score_in_a_gaussian_neighbourhood(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deviation = NEIGHBOURHOOD * max(shape)
    centered = image - gaussian_mean(image, deviation)
    expected = centered / (gaussian_mean(centered**2, deviation) + LEAST_DEVIATION**2).sqrt()
    found = normalised(image[None, None].float(), MEAN, STD, "local")
    torch.testing.assert_close(found[0, 0].double(), expected, atol=1e-4, rtol=1e-4)


def test_local_takes_away_an_exposure_that_varies_within_the_image():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    bone = 0.2 + 0.2 * ((rows - 0.5 - 0.1 * torch.sin(9 * columns)).abs() < 0.04).float()
    pair = torch.stack([bone, bone * (1 + columns)])[:, None]

    def correlation(kind):
        return torch.corrcoef(normalised(pair, MEAN, STD, kind).flatten(1))[0, 1]

    assert correlation("image") < 0.8
    assert correlation("local") > 0.95


def test_local_is_mirrored_with_the_image_and_negative_with_its_negative(images):
    found = normalised(images.float(), MEAN, STD, "local")
    assert found.std() > 0.5
    torch.testing.assert_close(normalised(images.float().flip(-1), MEAN, STD, "local"), found.flip(-1))
    torch.testing.assert_close(normalised(1 - images.float(), MEAN, STD, "local"), -found, atol=1e-4, rtol=1e-4)


def test_local_is_exact_under_autocast_and_faint_where_the_image_is_empty(images):
    found = normalised(images.float(), MEAN, STD, "local")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normalised(images.float(), MEAN, STD, "local"), found)
    empty = 0.3 + 1e-3 * (images.float() - 0.45)
    assert normalised(empty, MEAN, STD, "local").abs().max() < 1e-3 / LEAST_DEVIATION
    assert normalised(torch.full((1, 1, 8, 8), 0.7), MEAN, STD, "local").abs().max() < 1e-4


def test_fixed_is_the_same_for_all(images):
    torch.testing.assert_close(normalised(images, MEAN, STD, "fixed"), (images - 0.5) * 4)
