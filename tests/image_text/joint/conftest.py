"""A tiny joint model, a batch with gaps, and a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from image_text.batches import PairBatch
from image_text.config import ImageTextConfig
from image_text.joint.model import JointModel
from image_text.train import build_towers

NAN = float("nan")


@pytest.fixture(scope="session")
def joint_config(make_config: Callable[..., ImageTextConfig]) -> Callable[..., ImageTextConfig]:
    """A tiny config of the joint transformer with changes."""

    def build(**changes: Any) -> ImageTextConfig:
        return make_config(**{"method": "beyond_clip", "joint.columns": "age,sex", "joint.layers": 1, **changes})

    return build


@pytest.fixture
def model(joint_config: Callable[..., ImageTextConfig]) -> JointModel:
    """The tiny model, in eval mode."""
    torch.manual_seed(0)
    found = build_towers(joint_config(), grades=5, fresh=True)
    assert isinstance(found, JointModel)
    return found.eval()


@pytest.fixture
def batch() -> PairBatch:
    """Six cases: the second has no report, the third no table, the last neither; the fifth has no grade."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 48, 48, generator=generator)
    tokens = torch.randint(3, 200, (6, 48), generator=generator)
    tokens[:, 0], tokens[:, 20:] = 1, 0
    tokens[[1, 5]] = 0
    numbers = torch.tensor([[0.5, NAN], [1.0, NAN], [NAN, NAN], [-1.0, NAN], [NAN, NAN], [NAN, NAN]])
    categories = torch.tensor([[-1, 3], [-1, 4], [-1, -1], [-1, -1], [-1, 3], [-1, -1]])
    return PairBatch(
        images,
        images,
        tokens,
        texts=torch.tensor([0, -1, 1, 2, 3, -1]),
        studies=torch.arange(6),
        grades=torch.tensor([0, 1, 2, 3, -1, 4]),
        numbers=numbers,
        categories=categories,
        tables=torch.tensor([0, 1, -1, 2, 3, -1]),
    )
