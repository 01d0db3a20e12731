"""Options of the text head are checked when built."""

from __future__ import annotations

import pytest

from clip_koa.config import ClipConfig


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"embed_dim": 1}, "clip.embed_dim is 1"),
        ({"stride": -1}, "clip.stride is -1"),
        ({"scale_start": 200.0}, "clip.scale_start is 200.0"),
        ({"image": "timm:resnet18"}, "a timm backbone has no text tower"),
    ],
)
def test_configurations_are_checked_when_built(options, expected):
    with pytest.raises(ValueError, match=expected):
        ClipConfig(**options)
