"""The interface between methods and the loop: both methods and the segmenter fulfil it."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dcmt.fixmatch import FixMatch
from dcmt.mean_teacher import MeanTeacher
from knee.task import Batch, Grader, Task
from segmentation.task import SegmentationTask

CALLS = ("parameters", "losses", "after_update", "validate")


@pytest.mark.parametrize("kind", [MeanTeacher, FixMatch, SegmentationTask])
def test_every_task_has_the_calls_of_the_loop_with_their_arguments(kind: type) -> None:
    for name in CALLS:
        wanted, found = (list(inspect.signature(getattr(one, name)).parameters) for one in (Task, kind))
        assert found == wanted, name
    assert "/" in kind.best_metric if isinstance(getattr(kind, "best_metric", None), str) else True


def test_a_grader_is_anything_that_can_be_called(small_grader: Callable[..., nn.Module]) -> None:
    grading = small_grader(grades=4)(torch.zeros(2, 1, 16, 16))
    assert isinstance(small_grader(), Grader) and not isinstance(torch.zeros(1), Grader)
    assert grading.logits.shape == (2, 4)
    assert grading.class_maps.shape[:2] == (2, 4)


def test_a_batch_holds_grades_and_masks_of_labeled_images_only(small_batch: Callable[..., Batch]) -> None:
    batch = small_batch(4, 2)
    assert len(batch.student) == len(batch.teacher) == 6
    assert len(batch.grades) == len(batch.masks) == len(batch.has_mask) == 4
    assert len(batch.content) == len(batch.targets) == 0
    assert set(Batch._fields) == {"student", "teacher", "grades", "masks", "has_mask", "content", "targets"}
