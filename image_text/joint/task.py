"""The joint transformer as a ``knee.task.Task`` (Beyond CLIP 2025): contrast, grades, reconstruction, and an EMA teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcmt.losses import probability_consistency
from dcmt.schedules import exponential_ramp, teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher
from image_text.batches import PairBatch
from image_text.config import LARGEST_SCALE, ContrastConfig, JointConfig
from image_text.contrastive import choose_targets
from image_text.joint.model import Fused, JointModel
from image_text.joint.reconstruction import cell_loss, hide, patch_loss, patch_targets, word_loss
from image_text.losses import soft_clip, unit
from image_text.text import PAD
from knee.nn.padding import cell_weights
from knee.nn.processes import gathered, share_of_mean
from knee.task import StepLosses, Validation

_FEWEST = 2
"""A contrastive term needs this many cases that have both modalities."""


class Side(NamedTuple):
    """One modality of a batch."""

    embeddings: Tensor
    """(B, D) of unit length."""
    present: Tensor
    """(B,) bool."""


class Joint:
    """Student and EMA teacher of the joint model. A ``knee.task.Task``.

    The grade from the image alone is what is predicted. ``ramp_start`` and ``ramp_steps`` are those of the consistency with
    the privileged teacher.
    """

    def __init__(
        self,
        student: JointModel,
        *,
        joint: JointConfig,
        contrast: ContrastConfig,
        decay: float,
        ramp_start: int,
        ramp_steps: int,
        best_metric: str,
        buffers: BufferPolicy = "ema",
    ) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        self.joint, self.contrast = joint, contrast
        self.decay, self.ramp_start, self.ramp_steps = decay, ramp_start, ramp_steps
        self.best_metric = best_metric
        self.buffers: BufferPolicy = buffers
        self.validation: Validation | None = None

    def parameters(self) -> Iterable[nn.Parameter]:
        """The student's parameters; the teacher follows by averaging."""
        return self.student.parameters()

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Parameters without weight decay."""
        return self.student.undecayed()

    def losses(self, batch: PairBatch, step: int) -> StepLosses:
        """All terms of a batch; a term whose weight is 0 is not computed."""
        joint, network = self.joint, self.student
        maps = network.maps(batch.student)
        weights = cell_weights(batch.student, (maps.shape[2], maps.shape[3]), dtype=maps.dtype)
        pooled = (maps * weights).mean((2, 3))  # as the grader pools, without padding
        logits, *further = network.image_grades(pooled)
        terms: dict[str, Tensor] = {}
        watched: dict[str, Tensor] = {}
        if joint.contrast:
            terms, watched = self._contrasts(batch, pooled)
        if joint.grade:
            terms["grade"] = grade_loss(logits, batch.grades)
            terms |= further_loss("grade_further", further, batch.further)
        if joint.grade or joint.patches or joint.words or joint.cells:
            terms |= self._fused(batch, maps)
        ramp = exponential_ramp(step, self.ramp_steps, start=self.ramp_start)
        if joint.privileged and ramp:
            terms["privileged"] = self._privileged(batch, logits)
        return StepLosses(self._total(terms, ramp), terms, watched)

    def _contrasts(self, batch: PairBatch, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The soft CLIP loss of each pair of modalities over the cases that have both, and their shares."""
        network = self.student
        texts, all_studies, all_grades = map(gathered, (batch.texts, batch.studies, batch.grades))
        groups = {"report": texts}
        sides = {"image": Side(gathered(unit(network.image_head(pooled))), torch.ones_like(texts, dtype=torch.bool))}
        sides["report"] = Side(gathered(network.embed_report(batch.tokens)), texts >= 0)
        if batch.numbers.shape[1]:
            groups["table"] = gathered(batch.tables)
            embeddings = gathered(network.embed_table(batch.numbers, batch.categories))
            sides["table"] = Side(embeddings, groups["table"] >= 0)
        terms, watched = {}, {}
        names = list(sides)
        for number, first in enumerate(names):
            for second in names[number + 1 :]:
                both = sides[first].present & sides[second].present
                watched[f"contrast/{first}_{second}_share"] = both.float().mean()
                a, b = sides[first].embeddings[both], sides[second].embeddings[both]
                name = f"{first}_{second}"
                if len(a) < _FEWEST:
                    terms[name] = (sides[first].embeddings.sum() + sides[second].embeddings.sum()) * 0.0
                    continue
                scale = network.log_scale.exp()
                alike, studies, grades = groups[second][both], all_studies[both], all_grades[both]
                targets = choose_targets(self.contrast, a, b, scale, alike, studies, grades)
                terms[name] = soft_clip(a, b, scale, targets).loss
        return terms, watched

    def _fused(self, batch: PairBatch, maps: Tensor) -> dict[str, Tensor]:
        """The grade and the reconstructions of the joint transformer, which sees the batch with parts hidden."""
        joint, network = self.joint, self.student
        grid = (maps.shape[2], maps.shape[3])
        there = ~batch.numbers.isnan() | (batch.categories >= 0)
        hidden = hide(batch.student, batch.tokens, there, grid, share=joint.hidden)
        if joint.patches:
            maps = network.maps(hidden.images)
        seen = seen_modalities(batch, joint.dropout)
        found = network.fuse(maps, hidden.tokens, batch.numbers, batch.categories, seen, hidden.cells)
        terms = {}
        if joint.grade:
            terms["grade_fused"] = grade_loss(found.logits, batch.grades)
            terms |= further_loss("grade_further_fused", found.further, batch.further)
        if joint.patches:
            terms["patches"] = patch_loss(found, patch_targets(batch.student, grid), hidden.patches & seen[:, :1])
        if joint.words:
            terms["words"] = word_loss(network, found, batch.tokens, hidden.words & seen[:, 1:2])
        if joint.cells and there.shape[1]:
            standardised = network.table.standardised(batch.numbers)
            terms["cells"] = cell_loss(found, standardised, batch.categories, hidden.cells & seen[:, 2:])
        return terms

    def _privileged(self, batch: PairBatch, logits: Tensor) -> Tensor:
        """Eq. 3 of Huo et al. on cases without a grade: the student sees the image, the teacher all modalities."""
        ungraded = batch.grades < 0
        share = share_of_mean(int(ungraded.sum()), logits.device)
        if not ungraded.any():
            return logits.sum() * 0.0
        with torch.no_grad():
            fused = grade_with_all(self.teacher, batch.teacher, batch.tokens, batch.numbers, batch.categories)
        return share * probability_consistency(logits[ungraded], fused.logits[ungraded])

    def _total(self, terms: Mapping[str, Tensor], ramp: float) -> Tensor:
        joint = self.joint
        weights = {"grade": joint.grade, "grade_fused": joint.grade, "grade_further": joint.grade,
                   "grade_further_fused": joint.grade, "patches": joint.patches, "words": joint.words,
                   "cells": joint.cells, "privileged": joint.privileged * ramp}  # fmt: skip
        return torch.stack([weights.get(name, joint.contrast) * value for name, value in terms.items()]).sum()

    def after_update(self, step: int) -> Mapping[str, float]:
        """Limit the scale to 100, and update the teacher."""
        with torch.no_grad():
            self.student.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        decay = teacher_decay(step, self.decay)
        update_teacher(self.teacher, self.student, decay)
        update_buffers(self.teacher, self.student, decay, policy=self.buffers)
        ramp = exponential_ramp(step, self.ramp_steps, start=self.ramp_start)
        return {"teacher_decay": decay, "ramp": ramp, "scale": float(self.student.log_scale.detach().exp())}

    def validate(self, step: int) -> Mapping[str, float]:
        """Grades from the image alone and from all modalities, and retrieval, on the validation data."""
        return self.validation(self.networks, step) if self.validation else {}


def grade_with_all(model: nn.Module, images: Tensor, tokens: Tensor, numbers: Tensor, categories: Tensor) -> Fused:
    """The joint transformer's output from everything that each case has."""
    assert isinstance(model, JointModel)
    seen = torch.ones(len(images), 3, dtype=torch.bool, device=images.device)
    return model.fuse(model.maps(images), tokens, numbers, categories, seen)


def grade_loss(logits: Tensor, grades: Tensor) -> Tensor:
    """Mean cross-entropy of the cases with a grade; logits (B, K), grades (B,) with −1 for none → scalar, 0 without any.

    Of several processes, the mean of their values is that of all cases.
    """
    known = grades >= 0
    share = share_of_mean(int(known.sum()), logits.device)
    if not known.any():
        return logits.sum() * 0.0
    return share * F.cross_entropy(logits[known].float(), grades[known])


def further_loss(name: str, logits: Sequence[Tensor], grades: Tensor) -> dict[str, Tensor]:
    """The sum of ``grade_loss`` over further grade sets, by its name; grades (B, S). Empty without any."""
    if not logits:
        return {}
    return {name: torch.stack([grade_loss(one, grades[:, place]) for place, one in enumerate(logits)]).sum()}


def seen_modalities(batch: PairBatch, dropout: float) -> Tensor:
    """(B, 3) bool: which of image, report and table a case shows; each that it has is withheld with probability ``dropout``.

    Where nothing would be left, the image is kept. Draws from torch's global generator.
    """
    image = torch.ones_like(batch.texts, dtype=torch.bool)
    table = batch.tables >= 0 if batch.numbers.shape[1] else torch.zeros_like(image)
    has = torch.stack([image, (batch.tokens != PAD).any(1), table], 1)
    seen = has & (torch.rand(has.shape, device=has.device) >= dropout)
    seen[:, 0] |= ~seen.any(1)
    return seen
