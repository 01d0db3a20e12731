"""Cases of a review are what both networks predict for the image and its flip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from knee.review.cases import CaseFacts
from knee.review.collect import review_cases
from knee.task import Grading


class Quadrants(nn.Module):
    """Grades by the brightest quarter of the image: grade and map are known; 4 grades, a 4 × 4 grid."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, images: Tensor) -> Grading:
        pooled = nn.functional.adaptive_avg_pool2d(images, 4)
        quarters = torch.zeros(4, 4, 4)
        for grade, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
            quarters[grade, row : row + 2, column : column + 2] = 1
        maps = self.gain * pooled * quarters
        return Grading(maps.mean((2, 3)), maps)


def test_cases_are_what_both_networks_say():
    images = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    images[0, 0, :16, 16:] = 200  # the top right quarter: grade 1, its mirror image grade 0
    images[1, 0, 16:, :16] = 200
    images[2, 0, 16:, 16:] = 100
    masks = np.zeros((9, 32, 32), np.uint8)
    masks[7, :16, 16:] = 1
    facts = {row: CaseFacts(f"c{row}", "unlabeled", grade=row % 4 if row == 7 else None, side="L") for row in (5, 6, 7)}
    student, teacher = Quadrants(10.0), Quadrants(40.0).train()
    cases = list(
        review_cases(
            student,
            teacher,
            [(images[:2], torch.tensor([7, 5])), (images[2:], torch.tensor([6]))],
            facts.__getitem__,
            masks=masks,
            has_mask=np.arange(9) == 7,
        )
    )
    assert [case.case for case in cases] == ["c7", "c5", "c6"]
    assert [case.teacher.grade for case in cases] == [1, 2, 3]
    assert np.array_equal(cases[0].image, images[0, 0].numpy())
    assert cases[0].teacher.class_map == pytest.approx(4 * cases[0].student.class_map)
    assert cases[0].teacher.maximum == pytest.approx(40 * 200 / 255)
    assert cases[0].overlap is not None and cases[0].overlap > 0.85 and cases[1].overlap is None
    assert cases[0].flip_disagreement > 0.5
    assert cases[0].mismatch == pytest.approx(1 - cases[0].teacher.probabilities[3])
    assert teacher.training and student.training


def test_without_doubts_there_are_the_same_grades_and_maps_and_no_evidence():
    images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    images[0, 0, :16, 16:] = images[1, 0, 16:, :16] = 200
    facts = [CaseFacts(f"c{row}", "new") for row in range(2)]
    networks, loader = (Quadrants(10.0), Quadrants(40.0)), [(images, torch.arange(2))]
    whole = list(review_cases(*networks, loader, facts.__getitem__))
    bare = list(review_cases(*networks, loader, facts.__getitem__, doubts=False))
    for one, other in zip(whole, bare, strict=True):
        assert np.array_equal(one.teacher.class_map, other.teacher.class_map)
        assert one.student.probabilities == pytest.approx(other.student.probabilities)
        assert one.evidence is not None and other.evidence is None and other.evidence_against is None
        assert np.isnan(other.flip_disagreement)
