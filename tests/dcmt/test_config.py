"""Options of a grader: what would be ignored or is out of range is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dcmt.config import GraderConfig
from knee.errors import UserError

from .fixmatch_options import METHOD

Make = Callable[..., GraderConfig]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.probability_consistency": 5}, r"does not have the losses probability_consistency; add --loss\.prob"),
        ({"loss.symmetry": True}, r"does not have the losses symmetry; add --loss\.symmetry false"),
        ({"views.teacher_photometric": "same"}, r"both views are strong; add --views\.teacher_photometric weak"),
        (
            {"data.unlabeled_per_batch": 0},
            r"unlabeled_per_batch 0 and fixmatch\.unlabeled_weight 1, so unlabeled images",
        ),
        (
            {"fixmatch.unlabeled_weight": 0},
            r"unlabeled_per_batch 2 and fixmatch\.unlabeled_weight 0, so unlabeled images",
        ),
        ({"fixmatch.threshold": 1.1}, r"fixmatch\.threshold is 1\.1; it must be in \[0, 1\]"),
        ({"fixmatch.momentum": 1.0}, r"fixmatch\.momentum is 1\.0; it must be at least 0 and below 1"),
        ({"fixmatch.unlabeled_weight": -1}, r"fixmatch\.unlabeled_weight is -1"),
        ({"fixmatch.weighting": "softmatch", "data.unlabeled_per_batch": 1}, r"at least two unlabeled images"),
        ({"method": "mean_teacher", "loss.probability_consistency": 1, "fixmatch.threshold": 0.9}, r"method: fixmatch"),
        ({"method": "flexmatch"}, r"option method: expected one of mean_teacher, fixmatch"),
    ],
)
def test_what_would_be_ignored_or_is_out_of_range_is_refused(
    changes: dict[str, Any], message: str, grader_config: Make
) -> None:
    with pytest.raises(UserError, match=message):
        grader_config(**{**METHOD, **changes})


def test_supervised_training_on_weak_views_is_a_choice_of_weights(grader_config: Make) -> None:
    config = grader_config(**METHOD, **{"fixmatch.unlabeled_weight": 0, "data.unlabeled_per_batch": 0})
    assert (config.method, config.fixmatch.unlabeled_weight) == ("fixmatch", 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss.mixup": 0.2}, "loss.mixup"),
        ({"fixmatch.weighting": "softmatch"}, "fixmatch.weighting softmatch"),
        ({"fixmatch.distribution_alignment": "uniform"}, "fixmatch.distribution_alignment"),
    ],
)
def test_losses_of_whole_batches_are_refused_in_several_processes(
    grader_config: Make, changes: dict[str, Any], named: str
) -> None:
    off = dict.fromkeys(("loss.probability_consistency", "loss.attention_consistency"), 0.0)
    off |= {"data.unlabeled_per_batch": 0, "loss.attention": 0.0}
    if named.startswith("fixmatch"):
        off |= {"method": "fixmatch", "fixmatch.unlabeled_weight": 0.0}
    config = grader_config(**off, **changes)
    config.refuse_parts(1)
    with pytest.raises(UserError, match=named):
        config.refuse_parts(2)
