"""The section data of a config: every range is refused just beyond its ends."""

from __future__ import annotations

from typing import Any

import pytest

from knee.data.config import DataConfig


@pytest.mark.parametrize(
    ("option", "accepted", "refused"),
    [
        ("labeled_fraction", (1e-3, 1.0), (0.0, 1.001, float("nan"))),
        ("image_size", (16, 2048), (15, 2049)),
        ("labeled_per_batch", (1, 10_000), (0, 10_001)),
        ("unlabeled_per_batch", (0, 10_000), (-1, 10_001)),
        ("mask_dilation", (0.0, 256.0), (-0.1, 256.1, float("inf"))),
        ("percentiles", ((0.0, 100.0), (1.0, 2.0)), ((2.0, 1.0), (1.0, 1.0), (-1.0, 50.0), (0.0, 100.1))),
        ("workers", (0, 256), (-1, 257)),
    ],
)
def test_ranges_end_where_they_say(option: str, accepted: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    for value in accepted:
        assert getattr(DataConfig(**{option: value}), option) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"data\.{option} is .*; it must be"):
            DataConfig(**{option: value})
