"""Options of a FixMatch run, for the tests of its equations and of its runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dcmt.config import FixMatchConfig, LossConfig
from dcmt.fixmatch import FixMatch

METHOD = {
    "method": "fixmatch",
    "loss.probability_consistency": 0,
    "loss.attention_consistency": 0,
    "views.teacher_photometric": "weak",
}


SOFTMATCH = {"fixmatch.weighting": "softmatch", "fixmatch.distribution_alignment": "uniform"}


def make(student: nn.Module, *, decay: float = 0.9, attention: float = 0.0, **options: Any) -> FixMatch:
    return FixMatch(
        student, grades=3, loss=LossConfig(attention=attention), options=FixMatchConfig(**options), decay=decay
    )


def sure(student: nn.Module, times: float = 400.0) -> nn.Module:
    """The same student with larger logits of mean 0, so that confidences and classes differ from image to image."""
    images = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        student.classifier.weight.mul_(times)
        student.classifier.bias.sub_(student(images).logits.mean(0))
    return student
