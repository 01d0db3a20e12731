"""The sheet: order of the images, and what they share with the query."""

from __future__ import annotations

import numpy as np

from image_text.retrieval import Pairs
from image_text.sheet import first_images, shares


def test_order_and_shares() -> None:
    angles = np.array([0.0, 0.5, 1.0, 0.1])
    images = np.stack([np.cos(angles), np.sin(angles)], 1)
    pairs = Pairs(
        images,
        images[[0, 2]],
        text_of=np.array([0, 0, 1, 1]),
        patients=np.array([0, 1, 0, 2]),
        grades=np.array([2, 1, 2, 2]),
        covariates=np.zeros(4, np.int64),
    )
    assert first_images(pairs, 0, 3).tolist() == [0, 3, 1]
    assert first_images(pairs, 2).tolist() == [2, 1, 3, 0]
    assert [shares(pairs, 0, case) for case in range(4)] == ["same report", "same report", "same patient", "same grade"]
    assert shares(pairs, 1, 2) == ""
