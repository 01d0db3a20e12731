"""Options of image-text runs that contradict each other, and the shipped configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from image_text.config import ImageTextConfig
from knee.engine.options import read_config
from knee.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast.weight": 1.5}, r"contrast\.weight is 1\.5; it must be in \[0, 1\]"),
        ({"contrast.scale_start": 101.0}, r"contrast\.scale_start is 101\.0"),
        ({"data.unlabeled_per_batch": 4}, r"data\.unlabeled_per_batch is 4; it must be 0"),
        ({"data.labeled_per_batch": 1}, "2 or more pairs"),
        ({"model.head": "text"}, r"model\.head is 'text'"),
        ({"model.start": "runs/a"}, r"model\.start is 'runs/a'; it must be empty"),
        ({"teacher.buffers": "own"}, r"teacher\.buffers is 'own'; it must be ema or copy"),
        ({"text.heads": 3}, r"text\.heads is 3; it must be a divisor of text\.width"),
        ({"contrast.queue": 8, "contrast.targets": "hard"}, r"contrast\.targets is 'hard'; it must be same"),
        ({"contrast.queue": 8, "method": "beyond_clip"}, r"contrast\.queue is 8; it must be 0 with method"),
        ({"contrast.targets": "soft"}, "expected one of hard, self, labels, same, teacher"),
    ],
)
def test_what_cannot_be(make_config: Callable[..., ImageTextConfig], changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**changes)


def test_the_shipped_config_loads() -> None:
    config = read_config(ImageTextConfig, ["--config", str(ROOT / "configs" / "lumbarclip.yaml")], program="train.py")
    assert config.contrast.targets == "same"
    assert config.views.horizontal_flip == 0


def test_few_grades_are_in_every_batch_of_the_joint_config_and_no_view_hides_the_joint() -> None:
    for name in ("lumbarclip", "beyond_clip"):
        config = read_config(ImageTextConfig, ["--config", str(ROOT / "configs" / f"{name}.yaml")], program="train.py")
        assert (config.views.cutout_count, config.views.blur_pixels) == (0, 0)
    assert config.data.unlabeled_per_batch > 0
