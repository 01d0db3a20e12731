"""The prepared square, and the way back to the original pixels."""

import numpy as np
import pytest

from knee.images.read import prepare

RNG = np.random.default_rng(0)


def test_prepare_scales_between_percentiles():
    image = np.arange(100 * 100, dtype=np.float32).reshape(100, 100) * 3 - 7
    square, _ = prepare(image, 100, percentiles=(10, 90))
    low, high = np.percentile(image, (10, 90))
    expected = np.clip((image - low) / (high - low), 0, 1) * 255
    assert np.abs(square - expected).max() <= 0.5 + 1e-3
    inverted, _ = prepare(image, 100, percentiles=(10, 90), invert=True)
    assert np.abs(inverted.astype(int) + square - 255).max() <= 1
    assert (prepare(np.full((9, 9), 4.0), 5)[0] == 0).all()
    affine, _ = prepare(image * 2.5 + 11, 100, percentiles=(10, 90))
    assert np.abs(affine.astype(int) - square).max() <= 1


def test_prepare_mostly_constant_image_keeps_its_content():
    image = np.zeros((50, 50), np.float32)
    image[3, 4] = 9
    assert prepare(image, 50)[0][3, 4] == 255


@pytest.mark.parametrize("invert", [False, True])
def test_padding_is_black(invert):
    square, geometry = prepare(np.add.outer(np.arange(20.0), np.arange(60.0)) + 5, 60, invert=invert)
    assert (square[:20] == 0).all()
    assert (square[40:] == 0).all()
    assert (geometry.top, geometry.left, geometry.side) == (-20, 0, 60)


@pytest.mark.parametrize("shape", [(40, 40), (37, 90), (201, 64), (300, 300)])
@pytest.mark.parametrize("size", [32, 96, 128])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("boxed", [False, True])
def test_a_planted_spot_comes_back_to_its_place(shape, size, mirror, boxed):
    height, width = shape
    rng = np.random.default_rng(height + size)
    box = (height // 5, width // 4, height // 2, width // 2) if boxed else None
    top, left, box_height, box_width = box or (0, 0, *shape)
    for _ in range(4):
        y = top + box_height * rng.uniform(0.3, 0.7)
        x = left + box_width * rng.uniform(0.3, 0.7)
        # Broad enough to be seen on a coarser grid than its own.
        width_of_spot = 1.5 * max(1, max(box_height, box_width) / size)
        grid = np.mgrid[:height, :width]
        spot = np.exp(-((grid[0] - y) ** 2 + (grid[1] - x) ** 2) / (2 * width_of_spot**2))
        square, geometry = prepare(spot, size, percentiles=(0, 100), mirror=mirror, box=box)
        back = geometry.restore(square / 255)
        assert back.shape == shape
        total = back.sum()
        assert abs((grid[0] * back).sum() / total - y) < 0.5
        assert abs((grid[1] * back).sum() / total - x) < 0.5


def test_restore_at_the_same_size_is_exact():
    values = RNG.random((30, 50)).astype(np.float32)
    _, geometry = prepare(values, 50, mirror=True)
    padded = np.zeros((50, 50), np.float32)
    padded[10:40] = values
    np.testing.assert_array_equal(geometry.restore(padded[:, ::-1]), values)
    np.testing.assert_array_equal(geometry.cut(values), padded[:, ::-1])
    with pytest.raises(ValueError, match="this geometry is of"):
        geometry.restore(np.zeros((49, 50)))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (50, 50)])
@pytest.mark.parametrize("size", [25, 50, 77])
def test_content_is_what_is_not_padding(shape, size, mirror):
    square, geometry = prepare(RNG.random(shape) + 1, size, percentiles=(0, 100), invert=True, mirror=mirror)
    inside = geometry.content(square)
    assert abs(inside.shape[0] - shape[0] * size / 50) <= 2
    assert abs(inside.shape[1] - shape[1] * size / 50) <= 2
    assert not (inside.max(0) == 0).any()
    assert not (inside.max(1) == 0).any()


def test_outside_of_the_box_is_zero():
    _, geometry = prepare(RNG.random((40, 80)), 20, box=(0, 0, 40, 40))
    back = geometry.restore(np.ones((20, 20)))
    assert (back[:, :40] == 1).all()
    assert (back[:, 40:] == 0).all()
    with pytest.raises(ValueError, match="is not within the image"):
        prepare(RNG.random((40, 80)), 20, box=(0, 50, 40, 40))


def test_mask_follows_the_image():
    mask = np.zeros((60, 100), bool)
    mask[20:40, 70:90] = True
    _, geometry = prepare(mask.astype(float) + RNG.random(mask.shape) * 0.1, 50, mirror=True)
    small = geometry.prepare_mask(mask)
    assert small.dtype == np.uint8
    expected = np.zeros((50, 50), np.uint8)
    expected[20:30, 5:15] = 1
    np.testing.assert_array_equal(small, expected)
    with pytest.raises(ValueError, match="a mask of shape"):
        geometry.prepare_mask(mask[1:])
