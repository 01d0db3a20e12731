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
    Earlier,
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
        self.queue = Queue(contrast.queue, contrast.embed_dim) if contrast.queue else None
        if self.queue is not None:
            self.networks = {**self.networks, "queue": self.queue}  # so that a resumed run has it
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
        earlier = self.queue.earlier() if self.queue is not None else None
        targets = self._targets(batch, images, texts, scale, earlier)
        found = soft_clip(images, texts, scale, targets, earlier)
        watched = monitors(found, targets, images, texts)
        self._guard.check(watched)
        if self.queue is not None:
            self.queue.push(self._embedded(batch))
        return StepLosses(found.loss, {"soft_clip": found.loss}, watched)

    @torch.no_grad()
    def _embedded(self, batch: PairBatch) -> Earlier:
        """The teacher's embeddings of a batch, of all processes."""
        images, texts, _ = self.teacher(batch.teacher, batch.tokens)
        return Earlier(*map(gathered, (images, texts, batch.texts, batch.studies)))

    def _targets(
        self, batch: PairBatch, images: Tensor, texts: Tensor, scale: Tensor, earlier: Earlier | None
    ) -> Targets:
        if self.contrast.targets == "teacher":
            with torch.no_grad():
                a, b, teacher_scale = self.teacher(batch.teacher, batch.tokens)
                targets = teacher_targets(gathered(a), gathered(b), teacher_scale)
            return mixed_targets(targets, self.contrast.weight)
        groups, studies, grades = map(gathered, (batch.texts, batch.studies, batch.grades))
        if earlier is not None:
            return mixed_targets(same_targets(groups, studies, earlier), self.contrast.weight)
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
        towers = {"student": self.student, "teacher": self.teacher}
        return self.validation(towers, step) if self.validation else {}


class Queue(nn.Module):
    """The last pairs, as the teacher embedded them (He et al. 2020, arXiv 1911.05722): the newest first, at most ``size``."""

    images: Tensor
    texts: Tensor
    numbers: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, dim))
        self.register_buffer("texts", torch.zeros(size, dim))
        self.register_buffer("numbers", torch.full((size, 2), -1))
        self.register_buffer("count", torch.tensor(0))

    def earlier(self) -> Earlier | None:
        """The pairs that are there; None at first. Copies, so that a later ``push`` does not change them."""
        count = int(self.count)
        if not count:
            return None
        groups, studies = self.numbers[:count].unbind(1)
        return Earlier(self.images[:count].clone(), self.texts[:count].clone(), groups.clone(), studies.clone())

    @torch.no_grad()
    def push(self, pairs: Earlier) -> None:
        """Add pairs, and drop the oldest that have no place."""
        new = (pairs.images, pairs.texts, torch.stack([pairs.groups, pairs.studies], 1))
        for buffer, added in zip((self.images, self.texts, self.numbers), new, strict=True):
            buffer.copy_(torch.cat([added.to(buffer.dtype), buffer])[: len(buffer)])
        self.count.fill_(min(int(self.count) + len(pairs.images), len(self.images)))


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


def monitors(found: SoftClip, targets: Targets, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
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
             "mass, so little tells patients apart; use contrast.targets same (if it is, many reports are equal), or raise "
             "contrast.weight"),
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
