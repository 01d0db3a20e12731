"""Validation: attention is compared with dilated masks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmt.trained.loaded import LoadedRun, grade_rows, load_data, load_run
from dcmt.validation import GraderValidation, spread_over_grades
from knee.attention import attention_mask
from knee.engine.run import RunFolder
from knee.images.masks import dilate
from knee.metrics import exceeded_share
from knee.task import Grading

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Looks where an image is bright, on a grid of a quarter of its size; always of the first grade."""

    def forward(self, images: Tensor) -> Grading:
        maps = nn.functional.avg_pool2d(images, 4).repeat(1, 3, 1, 1)
        return Grading(torch.tensor([[3.0, 0.0, 0.0]]).repeat(len(images), 1), maps)


def plain_iou(loaded: LoadedRun, data: Any, rows: Any, *, dilation: float) -> np.ndarray:
    """Of {f > 0.5} and the mask, image by image, from the formula's own pieces."""
    attention, found = loaded.config.attention, []
    for row in rows:
        image = torch.from_numpy(np.array(data.cache.images[row]))[None, None].float() / 255
        maps = Brightness()(image).class_maps
        f = attention_mask(
            maps,
            torch.zeros(1, dtype=torch.int64),
            (image.shape[2], image.shape[3]),
            sharpness=attention.sharpness,
            threshold=attention.threshold,
        )[0].numpy()
        mask = dilate(np.array(data.cache.masks[row]), dilation) > 0
        found.append(((f > 0.5) & mask).sum() / ((f > 0.5) | mask).sum() if mask.any() else np.nan)
    return np.array(found)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_attention_is_compared_with_dilated_masks_at_the_configs_threshold(
    threshold: float, trained_run: RunFolder
) -> None:
    loaded = load_run(trained_run.path, checkpoint="best", device="cpu")
    attention = dataclasses.replace(loaded.config.attention, threshold=threshold)
    loaded = dataclasses.replace(
        loaded, config=dataclasses.replace(loaded.config, attention=attention), networks={"teacher": Brightness()}
    )
    data = load_data(loaded)
    dilation = loaded.config.data.mask_dilation
    for split in ("val", "test"):
        rows = data.rows(split)
        wanted, undilated = (plain_iou(loaded, data, rows, dilation=size) for size in (dilation, 0.0))
        assert np.abs(wanted - undilated).max() > 0.02
        np.testing.assert_allclose(grade_rows(loaded, data, rows)["teacher"].iou, wanted, atol=1e-6)
        if split == "val":
            tracker: Any = SimpleNamespace(shows=False)
            validation = GraderValidation(
                data, device=CPU, precision="fp32", attention=attention, tracker=tracker, cases=0
            )
            tiou = [np.nanmean(exceeded_share(iou)) for iou in (wanted, undilated)]
            assert tiou[0] != pytest.approx(tiou[1], abs=1e-3)
            assert validation({"teacher": Brightness()}, 0)["val_teacher/tiou"] == pytest.approx(tiou[0])


@pytest.mark.parametrize("count", [0, 1, 5, 17, 60, 99])
def test_rows_are_spread_over_grades_and_within_each(count: int) -> None:
    rng = np.random.default_rng(count)
    grades = rng.choice(4, 200, p=[0.6, 0.3, 0.08, 0.02])
    rows = np.sort(rng.choice(200, 60, replace=False))
    found = spread_over_grades(rows, grades, count=count)
    assert len(found) == min(count, 60)
    assert np.array_equal(found, np.unique(found)) and np.isin(found, rows).all()
    available = np.bincount(grades[rows], minlength=4)
    counts = np.bincount(grades[found], minlength=4) if len(found) else np.zeros(4, int)
    for grade in range(4):
        if counts[grade] < available[grade]:
            assert counts[grade] >= counts.max() - 1, "only a grade that is used up may have fewer"
