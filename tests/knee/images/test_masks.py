import cv2
import numpy as np
import pytest

from knee.images.masks import DilatedMasks, dilate, mask_dice, mask_iou


def point(size: int, row: int, column: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[row, column] = 1
    return mask


def test_a_point_becomes_a_disc_of_the_stated_size() -> None:
    disc = dilate(point(256, 100, 120), 18)
    rows, columns = np.nonzero(disc)
    assert np.hypot(rows - 100, columns - 120).max() <= 8.5 + 1e-3
    assert disc.sum() == pytest.approx(np.pi * 8.5**2, rel=0.05)
    assert disc.dtype == np.uint8 and set(np.unique(disc)) == {0, 1}


def test_scales_with_the_image() -> None:
    small, large = dilate(point(128, 64, 64), 20).sum(), dilate(point(512, 256, 256), 20).sum()
    assert large / small == pytest.approx(16, rel=0.2)


def test_near_the_authors_kernel() -> None:
    band = np.zeros((256, 256), dtype=np.uint8)
    band[120:128, 40:200] = 1
    theirs = cv2.dilate(band, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (18, 18)))
    assert mask_iou(dilate(band, 18)[None], theirs[None])[0] > 0.9


def test_commutes_with_mirroring_and_grows() -> None:
    mask = (np.random.default_rng(0).random((96, 96)) > 0.995).astype(np.uint8)
    grown = dilate(mask, 18)
    assert (dilate(mask[:, ::-1], 18) == grown[:, ::-1]).all()
    assert (grown >= mask).all() and (dilate(mask, 30) >= grown).all()


def test_nothing_stays_nothing_and_no_width_changes_nothing() -> None:
    assert not dilate(np.zeros((8, 8), dtype=np.uint8), 18).any()
    mask = point(8, 3, 3)
    assert (dilate(mask, 0) == mask).all()


@pytest.mark.parametrize(
    ("mask", "size", "message"),
    [
        (np.zeros((2, 4, 4), dtype=np.uint8), 18, r"must be \(H, W\)"),
        (np.full((4, 4), 255, dtype=np.uint8), 18, "values 0 and 1"),
        (np.full((4, 4), np.nan), 18, "values 0 and 1"),
        (np.zeros((4, 4), dtype=np.uint8), -1, "0 or more"),
    ],
)
def test_dilate_refuses(mask: np.ndarray, size: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dilate(mask, size)


def test_dilated_masks_read_one_or_many() -> None:
    masks = np.stack([point(64, 10 + 10 * number, 32) for number in range(4)])
    dilated = DilatedMasks(masks, 18)
    assert len(dilated) == 4
    assert (dilated[2] == dilate(masks[2], 18)).all()
    assert (dilated[np.array([3, 1])] == np.stack([dilate(masks[3], 18), dilate(masks[1], 18)])).all()
    assert dilated[np.array([], dtype=int)].shape == (0, 64, 64)


def test_dice_and_iou_by_hand() -> None:
    drawn, predicted = np.zeros((3, 2, 4)), np.zeros((3, 2, 4))
    drawn[0, 0], predicted[0, :, 1:3] = 1, 1  # 4 and 4 pixels, 2 in common
    predicted[1, 0, 0] = 1
    assert mask_dice(predicted, drawn)[:2].tolist() == [0.5, 0]
    assert mask_iou(predicted, drawn)[:2].tolist() == [pytest.approx(1 / 3), 0]
    assert np.isnan(mask_dice(predicted, drawn)[2]) and np.isnan(mask_iou(predicted, drawn)[2])


def test_dice_follows_from_iou() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 30, 9, 9)) > 0.6
    iou = mask_iou(one, other)
    assert mask_dice(one, other) == pytest.approx(2 * iou / (1 + iou))
    assert mask_dice(one, other) == pytest.approx(mask_dice(other, one))


def test_comparison_refuses() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        mask_dice(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="0 and 1"):
        mask_iou(np.full((1, 2, 2), 255), np.zeros((1, 2, 2)))
