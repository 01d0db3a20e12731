"""The interface between a method and the training loop, evaluation and review: two protocols and the values they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Grading(NamedTuple):
    """A grader's output for a batch of images."""

    logits: Tensor
    """(B, K), unbounded; softmax over K gives the probability of each grade."""
    class_maps: Tensor
    """(B, K, h, w), unbounded: the evidence for each grade at each position of the last feature map."""


@runtime_checkable
class Grader(Protocol):
    """Any network that returns logits of the grades and class maps, such as a CNN or a CLIP model."""

    def __call__(self, images: Tensor) -> Grading:
        """Images (B, 1, H, W) in [0, 1], not normalised: the network normalises by itself."""
        ...


class Embedder(Protocol):
    """A network that returns the features from which it grades an image."""

    def pooled(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] → (B, C), unbounded."""
        ...


class Batch(NamedTuple):
    """A two-stream batch: the labeled images first, then the unlabeled ones, in two views of one geometry.

    Only labeled images have grades and masks here, so those of unlabeled images cannot leak into training.
    """

    student: Tensor
    """(B, 1, H, W) float32 in [0, 1], padding marked (``knee.nn.padding``): the student's view."""
    teacher: Tensor
    """(B, 1, H, W) float32 in [0, 1]: the teacher's view; the same crop, flip and rotation."""
    grades: Tensor
    """(L,) int64, L ≤ B."""
    masks: Tensor
    """(L, H, W) float32 in {0, 1}; all zero where there is no mask."""
    has_mask: Tensor
    """(L,) bool."""
    content: Tensor = torch.zeros(0, 0, 0, dtype=torch.uint8)
    """(B, H, W) uint8, 0 in the padding, before it is marked in the images; empty without padding, and once it is marked."""
    targets: Tensor = torch.zeros(0, 0)
    """(B − L, K) float32: predicted probabilities of the grades for the images without; empty if there are none."""


class StepLosses(NamedTuple):
    """The losses of one batch."""

    total: Tensor
    """Scalar: the weighted sum to minimise."""
    terms: Mapping[str, Tensor]
    """Each term before its weight, by name; scalars."""
    monitors: Mapping[str, Tensor]
    """Values to monitor that are not minimised (agreement, entropy, share of pixels with a gradient)."""


Validation = Callable[[Mapping[str, nn.Module], int], Mapping[str, float]]
"""Metrics of the networks, by name, after a number of steps; runs in eval mode and without gradient."""


class Task(Protocol):
    """A training task, as the loop in ``knee.engine.fit`` uses it."""

    best_metric: str
    """The key of ``validate``'s result by which the best checkpoint is chosen; larger is better."""
    networks: Mapping[str, nn.Module]
    """Everything with weights or buffers, by name: saved, loaded and moved together."""
    validation: Validation | None
    """The function that ``validate`` calls; set by the code that has the validation data."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters to optimise."""
        ...

    def losses(self, batch: Any, step: int) -> StepLosses:
        """Forward passes and losses of one batch at optimizer step ``step`` (from 0)."""
        ...

    def after_update(self, step: int) -> Mapping[str, float]:
        """Called after optimizer step ``step`` (the teacher's update); returns schedule values to log."""
        ...

    def validate(self, step: int) -> Mapping[str, float]:
        """Metrics on the validation data after ``step`` steps, by name; networks are in eval mode, no gradient."""
        ...
