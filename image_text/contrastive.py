"""Contrastive pre-training as a ``knee.task.Task`` (LumbarCLIP 2025): student and EMA teacher of two towers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dcmt.schedules import teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher
from image_text.batches import PairBatch
from image_text.config import LARGEST_SCALE, ContrastConfig
from image_text.losses import (
    LEAST_DIAGONAL_MASS,
    LEAST_RANK,
    SoftClip,
    Targets,
    diagonal_mass,
    effective_rank,
    hard_targets,
    label_targets,
    mixed_targets,
    same_targets,
    self_targets,
    soft_clip,
    teacher_targets,
)
from image_text.towers import TwoTowers
from knee.nn.processes import gathered
from knee.task import StepLosses, Validation

log = logging.getLogger(__name__)
_PATIENCE = 20
"""Steps in a row below a limit before a warning."""


class Contrastive:
    """Two towers trained on pairs with the soft CLIP loss; the teacher follows by averaging. A ``knee.task.Task``.

    The best checkpoint is that with the best mean reciprocal rank of the teacher on the validation pairs.
    """

    best_metric = "val_teacher/mrr"

    def __init__(
        self, student: TwoTowers, *, contrast: ContrastConfig, decay: float, buffers: BufferPolicy = "ema"
    ) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        self.contrast = contrast
        self.decay = decay
        self.buffers: BufferPolicy = buffers
        self.validation: Validation | None = None
        self._guard = Guard()

    def parameters(self) -> Iterable[nn.Parameter]:
        """The student's parameters; the teacher follows by averaging."""
        return self.student.parameters()

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Parameters without weight decay."""
        return self.student.undecayed()

    def losses(self, batch: PairBatch, step: int) -> StepLosses:
        """The soft CLIP loss of a batch of pairs, of all processes together; ``step`` is ignored."""
        images, texts, scale = self.student(batch.student, batch.tokens)
        images, texts = gathered(images), gathered(texts)
        targets = self._targets(batch, images, texts, scale)
        found = soft_clip(images, texts, scale, targets)
        watched = monitors(found, targets, images, texts, scale)
        self._guard.check(watched)
        return StepLosses(found.loss, {"soft_clip": found.loss}, watched)

    def _targets(self, batch: PairBatch, images: Tensor, texts: Tensor, scale: Tensor) -> Targets:
        if self.contrast.targets == "teacher":
            with torch.no_grad():
                a, b, teacher_scale = self.teacher(batch.teacher, batch.tokens)
                targets = teacher_targets(gathered(a), gathered(b), teacher_scale)
            return mixed_targets(targets, self.contrast.weight)
        groups, studies, grades = map(gathered, (batch.texts, batch.studies, batch.grades))
        return choose_targets(self.contrast, images, texts, scale, groups, studies, grades)

    def after_update(self, step: int) -> Mapping[str, float]:
        """Limit the scale to 100, and update the teacher."""
        with torch.no_grad():
            self.student.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        decay = teacher_decay(step, self.decay)
        update_teacher(self.teacher, self.student, decay)
        update_buffers(self.teacher, self.student, decay, policy=self.buffers)
        return {"teacher_decay": decay, "scale": float(self.student.log_scale.detach().exp())}

    def validate(self, step: int) -> Mapping[str, float]:
        """Retrieval among the validation pairs."""
        return self.validation(self.networks, step) if self.validation else {}


def choose_targets(
    contrast: ContrastConfig, a: Tensor, b: Tensor, scale: Tensor, groups: Tensor, studies: Tensor, grades: Tensor
) -> Targets:
    """The targets of a config, except those of the teacher, for embeddings a, b (B, D).

    ``groups`` (B,) are equal for equal reports (or tables), as for ``same_targets``.
    """
    kind = contrast.targets
    if kind == "hard":
        return hard_targets(len(a), device=a.device)
    if kind == "same":
        targets = same_targets(groups, studies)
    elif kind == "labels":
        targets = label_targets(grades, temperature=contrast.label_temperature)
    else:
        targets = self_targets(a, b, scale)
    return mixed_targets(targets, contrast.weight)


def monitors(found: SoftClip, targets: Targets, images: Tensor, texts: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """KL to the targets, their mass on the own pair, the effective rank of both embeddings, and the accuracy in the batch."""
    logits = images.detach() @ texts.detach().T
    right = (logits.argmax(1) == torch.arange(len(logits), device=logits.device)).float().mean()
    return {
        "contrast/kl": (found.loss - found.entropy).detach(),
        "contrast/own_mass": diagonal_mass(targets),
        "contrast/rank_images": effective_rank(images),
        "contrast/rank_texts": effective_rank(texts),
        "contrast/batch_recall": right,
    }


class Guard:
    """Warns once if targets are too flat, or embeddings have collapsed, in many steps in a row."""

    def __init__(self) -> None:
        self._below: dict[str, int] = {}

    def check(self, watched: Mapping[str, Tensor]) -> None:
        """Count the values below their limits; the 20th in a row gives the warning."""
        limits = (
            ("contrast/own_mass", LEAST_DIAGONAL_MASS, "the targets give a pair's own report less than {limit} of their "
             "mass, so little tells patients apart; use contrast.targets same, or raise contrast.weight"),
            ("contrast/rank_images", LEAST_RANK, "the embeddings of the images have collapsed (effective rank below "
             "{limit}); use other contrast.targets, or lower optimizer.learning_rate"),
            ("contrast/rank_texts", LEAST_RANK, "the embeddings of the reports have collapsed (effective rank below "
             "{limit}); use other contrast.targets, or lower optimizer.learning_rate"),
        )  # fmt: skip
        for name, limit, message in limits:
            below = float(watched[name]) < limit
            self._below[name] = self._below.get(name, 0) + 1 if below else 0
            if self._below[name] == _PATIENCE:
                log.warning("warning: " + message.format(limit=limit))
