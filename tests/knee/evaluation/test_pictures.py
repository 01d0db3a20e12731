"""Overlays show the original: in its own orientation, at its own size."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from knee.attention import AttentionConfig
from knee.evaluation.pictures import case_pictures
from knee.grades import GradeSet
from knee.images.original import Source
from knee.images.read import prepare
from knee.task import Grading

SIZE = 64


class Bright(nn.Module):
    """Its map is the image itself on an 8 × 8 grid: it attends to what is bright."""

    def forward(self, images: Tensor) -> Grading:
        maps = nn.functional.adaptive_avg_pool2d(images, 8).repeat(1, 2, 1, 1)
        return Grading(maps.mean((2, 3)), maps)


def _pictures(sources, squares):
    loader = [(torch.from_numpy(np.stack(squares))[:, None], torch.arange(len(squares)))]
    return list(
        case_pictures(
            {"teacher": Bright()},
            loader,
            grade_set=GradeSet("ab", "", ("a", "b"), ("", ""), "kappa"),
            captions=dict.fromkeys(range(len(squares)), "case"),
            sources=sources.__getitem__,
            device=torch.device("cpu"),
            precision=None,
            attention=AttentionConfig(),
        )
    )


def test_overlays_of_a_knee_and_its_mirror_image_are_mirror_images(tmp_path):
    """The left one is mirrored for the networks, and must not be for the reader."""
    right = np.random.default_rng(0).integers(0, 120, (600, 400)).astype(np.uint8)
    right[380:480, 60:160] = 250
    sources, squares = [], []
    for side, values in (("R", right), ("L", right[:, ::-1])):
        cv2.imwrite(str(tmp_path / f"{side}.png"), values)
        square, geometry = prepare(values, SIZE, mirror=side == "L")
        squares.append(square)
        sources.append(Source(tmp_path / f"{side}.png", geometry))
    assert np.array_equal(*squares), "the networks see the same"
    one, other = (picture.panel[52:].astype(int) for picture in _pictures(sources, squares))
    assert one.shape == (600, 3 * 400 + 2 * 8, 3)
    for start in (408, 816):  # attention, evidence
        # Lines are drawn by whole pixels, and may be off by one of them.
        apart = np.abs(one[:, start : start + 400] - other[:, start : start + 400][:, ::-1]).max(2)
        assert (apart > 24).mean() < 0.03
    assert np.abs(one[:, :400] - other[:, :400][:, ::-1]).max() <= 1
    colored = np.ptp(one[:, 408:808], axis=2) > 60
    rows, columns = np.nonzero(colored)
    assert abs(rows.mean() - 430) < 25 and abs(columns.mean() - 110) < 25


def test_large_originals_are_shown_with_1024_pixels_and_lost_ones_as_the_network_saw_them(tmp_path):
    values = np.tile(np.linspace(0, 255, 1600).astype(np.uint8), (2000, 1))
    cv2.imwrite(str(tmp_path / "large.png"), values)
    square, geometry = prepare(values, SIZE)
    sources = [Source(tmp_path / "large.png", geometry), Source(tmp_path / "gone.png", geometry)]
    large, lost = (picture.panel for picture in _pictures(sources, [square, square]))
    assert large.shape[:2] == (52 + 1024, 3 * 819 + 2 * 8)
    assert lost.shape[:2] == (52 + 384, 3 * 384 + 2 * 8)
