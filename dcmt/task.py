"""DC-MT as a task: student and teacher, and the total of Eq. 5, in one place (Huo et al. 2020).

Every row of the paper's ablations is a choice of weights: supervised training has no consistency, the plain mean teacher no
attention terms, DC-MT (NAC) no attention consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcmt.losses import attention_consistency, attention_loss, probability_consistency
from dcmt.schedules import exponential_ramp, teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher
from knee.attention import SHARPNESS, THRESHOLD, attention_mask, empty_attention, gradient_share
from knee.task import Batch, Grading, StepLosses

Validation = Callable[[Mapping[str, nn.Module], int], Mapping[str, float]]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of Eq. 5; 0 leaves a term out."""

    grade: float = 1.0
    attention: float = 1.0
    probability_consistency: float = 1.0
    attention_consistency: float = 1.0
    mse_weight: float = 0.5
    inside_weight: float = 0.001


class MeanTeacher:
    """Student and teacher trained together on labeled and unlabeled images; a ``knee.task.Task``.

    ``ramp_steps`` is τ_max of w(τ). ``decay`` is α. The teacher's forward pass is left out where no term needs it; its
    buffers then follow the student's by ``ema`` whatever the policy, since statistics of its own would never move.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        weights: LossWeights,
        decay: float,
        ramp_steps: int,
        buffers: BufferPolicy = "own",
        sharpness: float = SHARPNESS,
        threshold: float = THRESHOLD,
        best_metric: str = "val_teacher/macro_f1",
    ) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        self.weights = weights
        self.decay = decay
        self.ramp_steps = ramp_steps
        self.sharpness = sharpness
        self.threshold = threshold
        self.best_metric = best_metric
        self.uses_teacher = weights.probability_consistency > 0 or weights.attention_consistency > 0
        self.uses_attention = weights.attention > 0 or weights.attention_consistency > 0
        self.buffers: BufferPolicy = buffers if self.uses_teacher or buffers == "copy" else "ema"
        self.validation: Validation | None = None

    def parameters(self) -> Iterable[nn.Parameter]:
        """The student's parameters; the teacher follows by averaging."""
        return self.student.parameters()

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Forward passes of both networks and the total of Eq. 5 at optimiser step τ = ``step``."""
        labeled = len(batch.grades)
        student: Grading = self.student(batch.student)
        teacher: Grading | None = None
        if self.uses_teacher:
            with torch.no_grad():
                teacher = self.teacher(batch.teacher)
        terms = {"grade": F.cross_entropy(student.logits[:labeled].float(), batch.grades)}
        monitors: dict[str, Tensor] = {}
        if teacher is not None:
            monitors |= _unlabeled_monitors(student.logits[labeled:], teacher.logits[labeled:])
            if self.weights.probability_consistency:
                terms["probability_consistency"] = probability_consistency(student.logits, teacher.logits)
        if self.uses_attention:
            more, seen = self._attention_terms(batch, student, teacher)
            terms |= more
            monitors |= seen
        ramp = exponential_ramp(step, self.ramp_steps)
        return StepLosses(_total(terms, self.weights, ramp), terms, monitors)

    def _attention_terms(
        self, batch: Batch, student: Grading, teacher: Grading | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        labeled, size = len(batch.grades), (batch.student.shape[-2], batch.student.shape[-1])
        count = len(student.logits) if self.weights.attention_consistency else labeled
        # The label where there is one, else the teacher's prediction, for both networks: an unlabeled image's true
        # grade is not in the batch, so it cannot choose the map.
        classes = batch.grades
        if teacher is not None:
            classes = torch.cat([batch.grades, teacher.logits[labeled:count].argmax(1)])
        f_student = self._attention(student.class_maps[:count], classes, size)
        monitors = {
            "empty_share": empty_attention(f_student).float().mean(),
            "gradient_share": gradient_share(f_student),
        }
        terms: dict[str, Tensor] = {}
        if self.weights.attention:
            rows = batch.has_mask
            terms["attention"] = attention_loss(
                f_student[:labeled][rows],
                batch.masks[rows],
                mse_weight=self.weights.mse_weight,
                inside_weight=self.weights.inside_weight,
            )
        if self.weights.attention_consistency and teacher is not None:
            f_teacher = self._attention(teacher.class_maps, classes, size)
            terms["attention_consistency"] = attention_consistency(f_student, f_teacher)
        return terms, monitors

    def _attention(self, class_maps: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
        return attention_mask(class_maps, classes, size, sharpness=self.sharpness, threshold=self.threshold)

    def after_update(self, step: int) -> Mapping[str, float]:
        """The teacher's update (Eq. 1) after optimiser step τ = ``step``."""
        decay = teacher_decay(step, self.decay)
        update_teacher(self.teacher, self.student, decay)
        update_buffers(self.teacher, self.student, decay, policy=self.buffers)
        return {"teacher_decay": decay, "ramp": exponential_ramp(step, self.ramp_steps)}

    def validate(self, step: int) -> Mapping[str, float]:
        """Metrics of student and teacher on the validation data."""
        return self.validation(self.networks, step) if self.validation else {}


def _total(terms: Mapping[str, Tensor], weights: LossWeights, ramp: float) -> Tensor:
    """Eq. 5: L_c + L_a + w(τ)(L_cc + L_ac), each with its weight."""
    total = weights.grade * terms["grade"]
    if "attention" in terms:
        total = total + weights.attention * terms["attention"]
    for name in ("probability_consistency", "attention_consistency"):
        if name in terms:
            total = total + getattr(weights, name) * ramp * terms[name]
    return total


def _unlabeled_monitors(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    if len(teacher_logits) == 0:
        return {}
    probabilities = teacher_logits.detach().float().softmax(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1).mean()
    agreement = (student_logits.detach().argmax(1) == teacher_logits.argmax(1)).float().mean()
    return {"unlabeled/agreement": agreement, "unlabeled/entropy": entropy}
